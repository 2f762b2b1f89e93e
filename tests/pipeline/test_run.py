"""The command as a user runs it: to the end, as a job that is stopped, again, and on another run's shards."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import BRIEFLY, TINY, flags_of, last_version, results_of, rows_of, run_here
from heads import Head, running_head

from pipeline.evaluate import prepare
from pipeline.evaluate_flags import EvaluateCommand
from pipeline.run import follow, main
from stages.data.datasets import DataConfig, load_data
from stages.models import ModelConfig
from stages.shipped import load_model
from stages.storage import Storage
from stages.trajectories.shards import read_shard

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def figures_of(results: dict) -> dict:
    """What is to be the same however a run came to its end: every verdict on every image, of each model."""
    return {
        name: {
            "clean": model["clean"],
            "measurements": {key: each["broken_by"] for key, each in model["measurements"].items()},
            "images": [worst["images"] for worst in model["worst_cases"]],
        }
        for name, model in results["models"].items()
    }


def test_a_run_ends_with_a_table_and_a_model_that_loads_in_one_line(finished: tuple[Path, str]) -> None:
    root, printed = finished
    results = results_of(root)
    for word in ("AutoAttack standard", "PGD-40", "clean", "undefended classifier", results["run"]["paths"]["model"]):
        assert word in printed
    model, data = load_model(results["run"]["paths"]["model"]), load_data(DataConfig(name="digits"))
    test = torch.from_numpy(data.test.images)
    right = (model(test.float() / 255).argmax(1).numpy() == data.test.labels).mean()
    robust, undefended = results["models"]["robust"], results["models"]["undefended"]
    assert robust["clean"]["images"] == undefended["clean"]["images"] == 64
    assert abs(right - robust["clean"]["value"]) < 0.2
    assert list(robust["measurements"]) == ["AutoAttack standard", "PGD-40"]
    assert undefended["measurements"]["AutoAttack standard"]["robust"]["value"] <= undefended["clean"]["value"]
    assert robust["worst_cases"][0]["unverified"] == undefended["worst_cases"][0]["unverified"] == 0
    made = results["run"]
    assert made["trajectories"]["shards"] == 16 >= made["trajectories"]["generated_now"] > 0
    assert {trial["trial"] for trial in made["search"]["trials"]} == {0, 1}
    assert [check["number"] for check in results["checks"]] == list(range(1, 21))
    assert results["robust_accuracy"]["value"] <= robust["measurements"]["AutoAttack standard"]["robust"]["value"]
    assert Path(results["run"]["paths"]["report"]).read_text().count("<img") > 10


def test_the_adversaries_of_a_receipt_are_in_the_ball(finished: tuple[Path, str]) -> None:
    data = load_data(DataConfig(name="digits"))
    receipts = list(finished[0].glob("store/autoattack/*/verdict.npz"))
    assert len(receipts) == 2  # a chunk of each model
    for path in receipts:
        verdict = np.load(path)
        clean = data.test.images[data.test.positions(verdict["rows"])] / np.float32(255)
        assert np.abs(verdict["adversarial"] - clean).max() <= 0.2 + 1e-6
        assert 0 <= verdict["adversarial"].min() <= verdict["adversarial"].max() <= 1


def test_a_table_shows_the_classifier_alone_beside_the_model(finished: tuple[Path, str]) -> None:
    model = results_of(finished[0])["run"]["paths"]["model"]
    prepared = prepare(EvaluateCommand(model=ModelConfig(name=model), table="3", data=DataConfig(name="digits")))
    assert list(prepared.asked.models) == ["model", "undefended classifier"]
    assert prepared.asked.models["undefended classifier"] is prepared.model.classifier


def test_the_same_command_again_attacks_nothing(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = finished
    before = results_of(root)
    rows = rows_of(root)
    run_here(root, *flags_of(TINY))
    after = results_of(root)
    generated = after["run"]["trajectories"]["generated_now"]
    assert generated == after["chunks_attacked_now"] == after["checks_done_now"] == 0
    assert rows_of(root) == rows
    assert figures_of(after) == figures_of(before)
    assert after["run"]["seconds"] == before["run"]["seconds"]  # of the work behind the figures, not of this call
    assert set(after["run"]["seconds"]) == {"classifier", "search", "attack", "training", "evaluation", "checks"}
    assert "training the classifier" not in capsys.readouterr().out


def test_a_dry_run_says_what_is_built(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, root = [*flags_of(TINY), "--dry-run"], tmp_path / "root"
    shutil.copytree(finished[0], root)

    def states() -> dict[str, str]:
        assert main([*flags, "--root", str(root)]) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line.split()[0]: line[48:] for line in lines if line.startswith(stages)}

    stages = ("classifier", "search", "rounds", "evaluation", "checks")
    assert states() == dict.fromkeys(stages, "built")
    shutil.rmtree(next(root.glob("store/autoattack/*")))
    assert states() == dict.fromkeys(stages, "built") | {"evaluation": "3 of 4 chunks", "checks": "to do"}
    shutil.rmtree(next(root.glob("store/verdict/*")))
    assert states() == {**dict.fromkeys(stages, "to do"), "classifier": "built", "rounds": "round 8 of 8"}


def test_a_damaged_receipt_is_named_and_not_used(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = finished
    receipt = next(root.glob("store/autoattack/*/verdict.npz"))
    content = receipt.read_bytes()
    receipt.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert main([*flags_of(TINY), "--root", str(root)]) == 1
    finally:
        receipt.write_bytes(content)
    said = capsys.readouterr().err
    assert said.startswith(f"error: {receipt.parent}: verdict.npz: found")
    assert "run the same command again" in said


def test_an_alarm_that_goes_on_is_said_as_often_as_the_judge_is_asked(make_setup: Callable, tmp_path: Path) -> None:
    setup, said = make_setup(tmp_path), []
    held, shown = SimpleNamespace(check=lambda: None), SimpleNamespace(follow=lambda line: None)
    tell = follow(setup, said.append, held, shown)  # pyright: ignore[reportArgumentType]
    every = setup.config.judge.every
    for number in range(2 * every):
        tell({"round": number, "loss": 1.0, "alarms": ["zero gradients: 31% have none"] if number else []})
    tell({"round": 2 * every, "loss": 1.0, "alarms": ["zero gradients: 32% have none", "collapse: now"]})
    alarms = [line for line in said if "ALARM" in line]
    assert alarms == [
        "ALARM in round 2: zero gradients: 31% have none",
        f"ALARM in round {2 + every}: zero gradients: 31% have none",
        f"ALARM in round {2 * every + 1}: collapse: now",
    ]


def chosen_attack(root: Path) -> list[str]:
    """Flags for the attack that a run's search chose, without a search."""
    attack = results_of(root)["run"]["attack"]
    lengths = [f"--attack.{name.replace('_', '-')}={attack[name]}" for name in ("steps", "step_size", "noise_scale")]
    return [*lengths, "--search.trials=0"]


def test_a_new_adapter_starts_from_another_runs_shards(
    finished: tuple[Path, str], ray_session: object, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = finished
    source = results_of(root)["run"]["name"]
    flags = ["--name=reuse", f"--train.from-cache={source}", "--schedule.rounds=2", *chosen_attack(root), *BRIEFLY]
    run_here(root, *flags_of(TINY), *flags)
    found = results_of(root, "reuse")["run"]["from_cache"]
    assert "foreign weights" in capsys.readouterr().out
    assert found["foreign_weights"] == 8  # v_0 .. v_7: without overlap each round attacks a version of its own
    assert found["disagreement"] == pytest.approx(found["stored"]["value"] - found["fresh"]["value"])


def test_shards_of_another_ball_are_refused_before_any_work(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = finished
    flags = [*flags_of(TINY), "--name=narrower", f"--train.from-cache={results_of(root)['run']['name']}", "--eps=0.1"]
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--attack.step-size=0.05", "--search.trials=0", "--root", str(root)])
    assert "attack within Linf 1020/5100, this recipe within Linf 510/5100: use" in capsys.readouterr().err
    assert not (root / "runs/narrower").exists()


@pytest.mark.parametrize("damaged", [b'{"fingerprint": "12', None], ids=["torn", "gone"])
def test_a_trained_run_whose_recipe_is_lost_is_not_taken_for_a_new_one(
    damaged: bytes | None, finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = finished
    run = Storage.at(root).below(f"runs/{results_of(root)['run']['name']}")
    content = run.get("recipe.json")
    if damaged:
        run.put("recipe.json", damaged)
    else:
        run.delete(["recipe.json"])
    try:
        with pytest.raises(SystemExit, match="2"):
            main([*flags_of(TINY), "--name", run.name, "--seed=3", "--root", str(root)])
    finally:
        run.put("recipe.json", content)
    assert "recipe.json is gone or damaged" in capsys.readouterr().err


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("head") / "log") as head:
        yield head


def test_a_job_with_bad_input_fails_with_its_message(head: Head) -> None:
    code, said = head.run("relative", "pipeline.run", "--root", "rap-runs")
    assert code != 0
    assert "error: --root rap-runs lies in the copy of its working directory in which a job runs" in said


def test_a_job_that_was_stopped_is_finished_by_another_to_the_same_bytes(
    head: Head, finished: tuple[Path, str], tmp_path: Path
) -> None:
    flags = flags_of({name: value for name, value in TINY.items() if name != "workers.cpus"})
    job, said = ["pipeline.run", *flags, *chosen_attack(finished[0]), "--root", str(tmp_path)], []
    with head.submitted("stopped", *job) as stopped:
        for line in stopped.stdout or ():
            said.append(line)
            if "round 4/8" in line:  # it may be beyond by now
                head.stop("stopped")
    assert not list(tmp_path.glob("runs/*/results.json")), "".join(said)
    assert "interrupted; nothing committed is lost" in "".join(said)
    code, then = head.run("another", *job)
    assert code == 0, then
    assert "AutoAttack standard" in then
    assert last_version(tmp_path) == last_version(finished[0])
    ours, theirs = results_of(tmp_path), results_of(finished[0])
    assert figures_of(ours) == figures_of(theirs)
    assert ours["run"]["trajectories"]["generated_now"] < 16
    rows = rows_of(tmp_path)
    assert len(rows) == 16  # two units a round, eight rounds: none lost, none twice
    for row in rows:
        assert read_shard(Storage.at(tmp_path), row.fingerprint).row == row
