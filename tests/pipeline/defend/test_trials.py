"""What the search tries: a function of the recipe, on the lattice, never the test data."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from commands import run_apart

from pipeline.defend.trials import first_trials, next_trials
from pipeline.presets import PRESETS
from pipeline.recipe import Recipe, SearchConfig
from stages.data.splits import Split
from stages.training.setup import Setup

DIGITS = PRESETS["digits"]()


def searching(*space: str, recipe: Recipe = DIGITS, **search: object) -> Recipe:
    return replace(recipe, search=SearchConfig(space=space, **search))  # pyright: ignore[reportArgumentType]


def test_the_first_trial_is_the_recipe_as_it_stands() -> None:
    own, *others = first_trials(searching("attack.noise-scale=0.1,0.2", "train.learning-rate=1e-3..1e-2:log", trials=5))
    assert own.settings == {"attack.noise_scale": 0.2, "train.learning_rate": DIGITS.train.learning_rate}
    assert replace(own.recipe, search=DIGITS.search) == replace(
        DIGITS, attack=replace(DIGITS.attack, noise_scale=0.2)
    )  # which the attack's unset scale means
    assert own.recipe.trial_loop() == searching().trial_loop()
    assert len(others) == 4
    assert {trial.recipe.attack.noise_scale for trial in others} <= {0.1, 0.2}


@pytest.mark.parametrize("algorithm", ["random", "grid"])
def test_more_trials_keep_those_that_were_there(algorithm: str) -> None:
    def tried(trials: int) -> list[dict]:
        space = ("attack.steps=5,10,20", "schedule.life=1,10,40", "train.ema=0.0,0.9")
        return [trial.settings for trial in first_trials(searching(*space, trials=trials, algorithm=algorithm))]

    assert tried(12)[:6] == tried(6)
    assert len(tried(100)) == 18
    assert len({tuple(settings.values()) for settings in tried(100)}) == 18


def test_every_trial_fits_lattice_and_ball_and_none_is_there_twice() -> None:
    found = first_trials(searching("attack.step-size=0.01..0.012", trials=100))
    steps = [trial.recipe.attack.process(trial.recipe.threat).step for trial in found]
    assert 5 < len(steps) == len(set(steps)) < 15  # the levels between the two, and the recipe's own
    for step, trial in zip(steps, found, strict=True):
        assert trial.settings["attack.step_size"] == step / 5100


def test_another_seed_tries_others() -> None:
    space = "train.learning-rate=1e-3..1e-2:log"
    assert first_trials(searching(space))[1:] != first_trials(searching(space, recipe=replace(DIGITS, seed=1)))[1:]


def test_a_trial_has_a_name_that_people_can_read_and_a_folder_can_have() -> None:
    _, trial = first_trials(searching("train.learning-rate=0.001", "train.objective.kl=2.0", trials=2))
    assert trial.name == "001-learning_rate=0.001,kl=2"
    assert str(trial) == "train.learning-rate 0.001, train.objective.kl 2"


def test_trials_are_judged_wherever_they_are_compared_and_leave_a_checkpoint_there() -> None:
    recipe = searching(trials=2, rounds=70, first_rounds=12, images=100)
    loop = recipe.trial_loop()
    assert recipe.rungs.all == (12, 24, 48, 70)
    for rounds in recipe.rungs.all:
        assert rounds == loop.schedule.rounds or not (rounds % loop.judge.every or rounds % loop.checkpoint_rounds)
    assert loop.checkpoint_rounds == 12 <= recipe.checkpoint_rounds
    assert loop.judge.images == 100
    assert replace(recipe, checkpoint_rounds=5).trial_loop().checkpoint_rounds == 4


def test_tpe_asks_for_a_batch_at_a_time_as_the_verdicts_before_say() -> None:
    pytest.importorskip("optuna")
    recipe = searching("train.learning-rate=1e-4..1e-1:log", "attack.steps=5,10", trials=14, batch=6, algorithm="tpe")
    first = first_trials(recipe)
    assert len(first) == 6

    def asked(good: float) -> list[dict]:
        robust = [-abs(trial.recipe.train.learning_rate - good) for trial in first]
        return [trial.settings for trial in next_trials(recipe, first, robust)]

    assert len(asked(0.01)) == 6
    assert asked(0.01) == asked(0.01)
    assert asked(0.01) != asked(1e-4)
    everyone = [*first, *next_trials(recipe, first, [0.5] * 6)]
    assert [trial.number for trial in everyone] == list(range(12))
    last = next_trials(recipe, everyone, [0.5] * 12)
    assert len(last) == 2
    more = replace(recipe, search=replace(recipe.search, trials=20))
    assert [trial.settings for trial in next_trials(more, everyone, [0.5] * 12)][:2] == [each.settings for each in last]
    assert next_trials(recipe, [*everyone, *last], [0.5] * 14) == []


def test_what_tpe_asks_for_again_is_replaced_by_something_new_until_there_is_nothing() -> None:
    pytest.importorskip("optuna")
    recipe = searching("attack.steps=5,10,20", "train.ema=0.0,0.9", trials=100, batch=4, algorithm="tpe")
    found = first_trials(recipe)
    while more := next_trials(recipe, found, [0.5] * len(found)):
        found = [*found, *more]
    assert len({tuple(trial.settings.values()) for trial in found}) == len(found) == 6


def test_a_trial_cannot_see_test_images() -> None:
    assert {field.name for field in fields(Setup) if field.type is Split} == {"train", "holdout"}


@pytest.mark.ray
def test_trials_get_the_share_of_a_gpu_that_is_asked_for_and_wait_or_are_refused_where_there_is_no_room(
    tmp_path: Path,
) -> None:
    printed = run_apart(Path(__file__).with_name("searched_on_gpus.py"), tmp_path, 0.5, 2)
    halves, doubles = [line for line in printed if "GPUs a trial: " in line]
    assert halves == "0.5 GPUs a trial: 3 of 3 trials ended, 2 at once, on [0]"
    assert doubles.startswith(
        "2 GPUs a trial: refused, before a trial began: a trial needs 1 x (1 CPUs, 2 GPUs), but this machine has"
    )
