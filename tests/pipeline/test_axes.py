"""What --search.space may say, and what is refused with the field's own message."""

from dataclasses import replace

import pytest

from pipeline.axes import default_space, own_settings, read_space
from pipeline.presets import PRESETS
from stages.search.space import Choice, Range

DIGITS = PRESETS["digits"]()


def test_values_and_ranges_are_read_as_the_field_reads_them() -> None:
    space = read_space(
        DIGITS,
        (
            "attack.step-size=1/20,0.1",
            "train.optimizer=sgd,adamw",
            "attack.projection=True,False",
            "train.learning_rate=5e-4..5e-3:log",
            "schedule.life=10..40:int",
            "schedule.restart=0..0.1",
        ),
    )
    assert space == {
        "attack.step_size": Choice((0.05, 0.1)),
        "train.optimizer": Choice(("sgd", "adamw")),
        "attack.projection": Choice((True, False)),
        "train.learning_rate": Range(5e-4, 5e-3, log=True),
        "schedule.life": Range(10, 40, whole=True),
        "schedule.restart": Range(0.0, 0.1),
    }


REFUSED = {
    "no such setting": ("attack.stepsize=1", "there is no setting attack.stepsize; there are: "),
    "a group": ("attack=1", "attack is no setting, but a group of them"),
    "no values": ("attack.steps", "is no setting with values: write"),
    "no whole number": ("attack.steps=5,ten", "attack.steps: invalid literal for int"),
    "no number": ("train.learning-rate=fast", "train.learning-rate: 'fast' is no number"),
    "no such word": ("train.optimizer=adam", "train.optimizer is 'adam'; allowed are adamw, sgd"),
    "nothing between commas": ("attack.steps=5,", "attack.steps: invalid literal"),
    "a value twice": ("attack.steps=5,5", "has a value twice"),
    "the field's own check": ("train.learning-rate=0,1", "train.learning_rate is 0; it must be greater than 0"),
    "an end of a range": ("schedule.restart=0..2", "schedule.restart is 2; it is a share in [0, 1]"),
    "larger than the ball": ("attack.step-size=0.1,0.3", "attack.step_size is 0.3, larger than the ball"),
    "off the lattice": ("attack.step-size=0.0003,0.1", "the nearest allowed are"),
    "downwards": ("schedule.life=40..10", "goes from 40 to 10: the first must be less"),
    "a logarithm of nothing": ("schedule.restart=0..1:log", "with :log greater than 0"),
    "a range of words": ("train.optimizer=a..b", "has no such range"),
    "an unknown mark": ("schedule.life=1..5:lin", "has no such range"),
    "the judge": ("judge.images=5,10", "a recipe that chose its judge would grade itself"),
    "the attacker": ("threat.radius=0.1,0.2", "trials are compared under the same attacker"),
    "luck": ("seed=0,1", "that would be a search for luck"),
    "the length of the run": ("schedule.rounds=5,10", "trials take --search.rounds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_with_what_does(case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(ValueError, match=r"search\.space ") as refused:
        read_space(DIGITS, (text,))
    assert message in str(refused.value)


def test_a_setting_stands_in_the_space_once() -> None:
    with pytest.raises(ValueError, match=r"names attack\.steps twice"):
        read_space(DIGITS, ("attack.steps=5", "attack.steps=10"))


def test_the_default_space_is_around_the_recipes_own_settings() -> None:
    assert default_space(DIGITS) == (
        "attack.steps=5,10,20",
        "attack.step-size=0.05,0.1,0.2",
        "attack.noise-scale=0.1,0.2",
    )
    assert default_space(DIGITS, ["attack.steps"]) == default_space(DIGITS)[1:]
    quiet = replace(DIGITS, attack=replace(DIGITS.attack, start="none"))
    assert default_space(quiet) == default_space(DIGITS)[:2]
    between = replace(
        DIGITS, threat=replace(DIGITS.threat, radius=0.1005), attack=replace(DIGITS.attack, step_size=0.1)
    )
    assert set(read_space(between, default_space(between))) == set(read_space(DIGITS, default_space(DIGITS)))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_default_space(preset: str) -> None:
    recipe = PRESETS[preset]()
    space = read_space(recipe, default_space(recipe))
    assert own_settings(recipe, space).keys() == space.keys() == own_settings(DIGITS, space).keys()
