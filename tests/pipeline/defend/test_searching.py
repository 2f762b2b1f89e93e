"""A search chooses the same whoever does the work, in whatever order, and whoever is killed meanwhile."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from killed_trials import killing
from loops import loop_workers

import cluster.tuner
from pipeline.axes import read_space
from pipeline.defend.searching import Searched
from pipeline.defend.searching import search as search_in
from pipeline.defend.shared_work import SharedWork
from pipeline.defend.trials import Trial
from pipeline.exits import ClaimedError, SearchError
from pipeline.placement import Workers
from pipeline.presets import PRESETS
from pipeline.recipe import AdapterConfig, Recipe, SearchConfig
from pipeline.tell.search_files import write_search
from pipeline.tell.trial_table import rows, search_json, search_text, table_of_trials
from stages.lease import lease
from stages.storage import Storage
from stages.training.journal import Journal
from stages.training.setup import Setup

BROKEN = 1e20  # a learning rate with which the loss becomes NaN
SPACE = ("train.learning-rate=3e-3,1e-2,3e-2", "attack.step-size=0.05,0.2")


def recipe_of(trials: int = 4, space: tuple[str, ...] = SPACE, **search: object) -> Recipe:
    digits = PRESETS["digits"]()
    settings = {"rounds": 6, "first_rounds": 2, "factor": 3, "images": 40} | search
    return replace(
        digits,
        adapter=AdapterConfig(size="flat"),
        schedule=replace(digits.schedule, cohort_images=16, round_cohorts=2, batch=16),
        search=SearchConfig(trials=trials, space=space, **settings),  # pyright: ignore[reportArgumentType]
        checkpoint_rounds=1,
    )


def workers(trials: int | None) -> Callable[[], Workers]:
    return lambda: Workers(device="cpu", cpus=1, gpus=0, loop=loop_workers(1), trials=trials)


def search(setup: Setup, *arguments: object) -> Searched:
    """A search whose folder is below its own root."""
    return search_in(setup, *arguments, folder=setup.root.below("searches/test"))  # pyright: ignore[reportArgumentType]


def nobody() -> Workers:
    pytest.fail("there is nothing left to train")


def run_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trials run here, one after the other, the last first; returns the names of those that did."""
    ran: list[str] = []

    def run(trial, asked, *, ended, **_: object) -> dict[str, str]:
        for name in reversed(asked):
            ran.append(name)
            trial(asked[name])
            ended(name, None)
        return {}

    class Here:
        def __init__(self, value: object) -> None:
            self.value = value

        def get(self) -> object:
            return self.value

    monkeypatch.setattr(cluster.tuner, "run_trials", run)
    monkeypatch.setattr("pipeline.defend.searching.put", Here)
    return ran


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trials run in this process; the names of those that did."""
    return run_here(monkeypatch)


def found(searched: Searched, root: Path) -> dict:
    """All that is to be the same: what was tried, each verdict on each image, the choice, and the last weights."""
    weights = {
        trial: [line["weights"] for line in Journal(Storage.at(root).below(f"trials/{trial}")).lines()]
        for trial in Storage.at(root).names("trials")
    }
    verdicts = [
        (rung.rounds, rung.decision, {number: each.metrics["remains"] for number, each in rung.receipts.items()})
        for rung in searched.rungs
    ]
    return {
        "settings": [trial.settings for trial in searched.trials],
        "verdicts": verdicts,
        "chosen": (searched.chosen, searched.ties),
        "weights": weights,
    }


@pytest.fixture(scope="module")
def undisturbed(make_setup: Callable[..., Setup], tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A search without Ray, to its end: its root, what it found, and which trials ran in which order."""
    root = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        ran = run_here(patch)
        searched = search(make_setup(root), recipe_of(), workers(1), lambda line: None)
    return root, searched, ran


def test_every_trial_is_trained_to_the_rungs_it_reaches_and_no_further(undisturbed: tuple) -> None:
    root, searched, ran = undisturbed
    assert [rung.rounds for rung in searched.rungs] == [2, 6]
    for trial in searched.trials:
        rounds = [rung.rounds for rung in searched.rungs if trial.number in rung.receipts]
        assert ran.count(trial.name) == len(rounds)
    done = sorted(len(lines) for lines in found(searched, root)["weights"].values())
    assert done == sorted(
        max(rung.rounds for rung in searched.rungs if trial.number in rung.receipts) for trial in searched.trials
    )
    assert set(searched.rungs[1].receipts) == set(searched.rungs[0].decision.going_on)
    assert 0 in searched.rungs[-1].receipts  # the recipe as it stands


def test_the_same_again_trains_nothing_also_from_a_copy(
    undisturbed: tuple, make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    root, searched, _ = undisturbed
    shutil.copytree(root, tmp_path / "copy")
    again = search(make_setup(tmp_path / "copy"), recipe_of(), nobody, print)
    assert found(again, tmp_path / "copy") == found(searched, root)


def test_more_trials_keep_the_verdicts_that_are_there(
    undisturbed: tuple, in_process: list[str], make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    root, searched, _ = undisturbed
    shutil.copytree(root, tmp_path / "copy")
    more = search(make_setup(tmp_path / "copy"), recipe_of(6), workers(1), print)
    assert [trial.settings for trial in more.trials[:4]] == [trial.settings for trial in searched.trials]
    first = {name for name in in_process if in_process.count(name)}
    assert {more.trials[4].name, more.trials[5].name} <= first
    for number, receipt in searched.rungs[0].receipts.items():
        assert more.rungs[0].receipts[number].manifest == receipt.manifest


def test_what_trials_share_is_told_as_it_is_until_their_metrics_are_pruned(
    undisturbed: tuple, in_process: list[str], make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    root, searched, _ = undisturbed
    steps = [trial["cost"]["attack_steps"] for trial in search_json(searched)["trials"]]
    by_step_size = [trial.settings["attack.step_size"] for trial in searched.trials]
    again = sum(size in by_step_size[:place] for place, size in enumerate(by_step_size))
    assert again
    assert searched.shared == SharedWork(attack_steps=sum(steps), among_trials=32 * again, with_searches=0)
    assert f"shared between them {32 * again:,} (" in search_text(searched)
    shutil.copytree(root, tmp_path / "copy")
    setup = make_setup(tmp_path / "copy")
    folder = setup.root.below("searches/other")
    recipe = recipe_of(1, ("train.learning-rate=1e-3,2e-3",), rounds=2)  # trial 0 is no trial of the first search
    other = search_in(setup, recipe, workers(1), print, folder=folder)
    assert in_process
    assert other.shared == SharedWork(attack_steps=64, among_trials=0, with_searches=32)  # the first of two rounds
    shutil.rmtree(tmp_path / "copy" / "trials")
    pruned = search(make_setup(tmp_path / "copy"), recipe_of(), nobody, print)
    assert pruned.shared is None
    assert "shared" not in search_json(pruned)


def test_a_lost_verdict_is_read_again_from_the_rounds_that_were_trained(
    undisturbed: tuple, in_process: list[str], make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    root, searched, _ = undisturbed
    shutil.copytree(root, tmp_path / "copy")
    receipt = searched.rungs[0].receipts[0]
    shutil.rmtree(tmp_path / "copy" / "store" / "verdict" / receipt.fingerprint)
    again = search(make_setup(tmp_path / "copy"), recipe_of(), workers(1), print)
    assert in_process == [searched.trials[0].name]
    assert found(again, tmp_path / "copy") == found(searched, root)


def test_tpe_chooses_the_same_when_it_is_asked_again(
    in_process: list[str], make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    recipe = recipe_of(5, ("train.learning-rate=1e-3..3e-2:log",), algorithm="tpe", batch=3, rounds=2)
    searched = search(make_setup(tmp_path), recipe, workers(1), print)
    assert len(searched.trials) == len(set(in_process)) == 5
    assert found(search(make_setup(tmp_path), recipe, nobody, print), tmp_path) == found(searched, tmp_path)


def test_a_training_that_diverges_is_a_verdict_and_all_of_them_are_one_message(
    in_process: list[str], make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    recipe = recipe_of(2, (f"train.learning-rate={BROKEN}",), rounds=4)
    said: list[str] = []
    searched = search(make_setup(tmp_path), recipe, workers(1), said.append)
    assert searched.rungs[0].decision.failed == (1,)
    assert searched.chosen == 0
    assert any(line.startswith("trial 1 (train.learning-rate 1e+20) failed: ") for line in said)
    assert search_json(searched)["trials"][1]["robust"] is None
    ran = len(in_process)
    broken = replace(recipe, train=replace(recipe.train, learning_rate=BROKEN), search=replace(recipe.search, trials=1))
    with pytest.raises(
        SearchError, match=r"all 1 trials of the search failed by round 2; trial 0 \(train.learning-rate"
    ):
        search(make_setup(tmp_path), broken, workers(1), said.append)
    assert len(in_process) == ran  # that verdict was there: the same settings are the same trial


def test_trials_that_keep_dying_end_the_search_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    def fail(trial, asked, *, ended, **_: object) -> dict[str, str]:
        return dict.fromkeys(asked, "its process died")

    monkeypatch.setattr(cluster.tuner, "run_trials", fail)
    monkeypatch.setattr("pipeline.defend.searching.put", lambda value: value)
    with pytest.raises(SearchError, match=r"4 of 4 trials kept failing before round 2, the first, 000-.*: its process"):
        search(make_setup(tmp_path), recipe_of(), workers(1), print)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_one_at_a_time_without_ray_and_two_at_once_that_are_killed_are_the_same_search(
    kills: int, undisturbed: tuple, make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    recipe, (root, searched, _) = recipe_of(), undisturbed
    if kills > 1:
        root, recipe = tmp_path / "undisturbed", recipe_of(8, ("train.learning-rate=3e-3..3e-2:log", SPACE[1]))
        with pytest.MonkeyPatch.context() as patch:
            run_here(patch)
            searched = search(make_setup(root), recipe, workers(1), print)
    with killing(tmp_path / "killed", 1 + kills) as killed:
        ours = search(make_setup(tmp_path / "killed"), recipe, workers(2), print)
    assert len(killed) == 1 + kills
    assert found(ours, tmp_path / "killed") == found(searched, root)


def test_a_search_is_told_as_a_table_that_has_every_verdict(undisturbed: tuple) -> None:
    _, searched, _ = undisturbed
    table = list(rows(searched))
    assert len(table) == sum(len(rung.receipts) for rung in searched.rungs)
    for row in table:
        assert row["robust_low"] <= row["robust"] <= row["robust_high"]
        assert row["images"] == 40
        assert row["attack_steps"] == row["rounds"] * 32
        assert row["updates"] == row["rounds"] * 2
    assert [row["trial"] for row in table if row["decision"] == "chosen"] == [searched.chosen]
    text = table_of_trials(searched)
    assert len([line for line in text.splitlines() if "]" in line]) == len(searched.trials)
    assert f"trial {searched.chosen} (" in search_text(searched)
    told = search_json(searched)
    assert [trial["trial"] for trial in told["trials"]] == [0, 1, 2, 3]
    assert told["trials"][searched.chosen]["rounds"] == 6


def test_the_chosen_recipe_has_the_settings_of_its_trial(undisturbed: tuple) -> None:
    _, searched, _ = undisturbed
    chosen: Trial = searched.trials[searched.chosen]
    assert searched.recipe.train.learning_rate == chosen.settings["train.learning_rate"]
    assert set(read_space(recipe_of(), SPACE)) == set(chosen.settings)


def test_a_search_leaves_a_page_and_events_of_every_trial(undisturbed: tuple, tmp_path: Path) -> None:
    root, searched, _ = undisturbed
    written = write_search(searched, Storage.at(tmp_path), preset="digits")
    page = Path(written["report"]).read_text()
    assert "Robust accuracy against train.learning rate" in page
    assert search_text(searched).splitlines()[0] in page
    for trial in searched.trials:
        files = [path.name for path in (root / "searches/test/tensorboard" / trial.name).iterdir()]
        assert len(files) == sum(trial.number in rung.receipts for rung in searched.rungs)


def test_a_search_that_another_process_is_at_is_refused(make_setup: Callable[..., Setup], tmp_path: Path) -> None:
    setup = make_setup(tmp_path)
    with (
        lease(setup.root.below("searches/test"), "lock"),
        pytest.raises(ClaimedError, match=r"is held by process \d+ on .*: let that search end, or stop it"),
    ):
        search(setup, recipe_of(), nobody, print)
