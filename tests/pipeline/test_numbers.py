"""Every number of the commands: any value makes sense, or is refused in words that name it, before any work."""

import dataclasses
import math
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.defend.plan import make_plan
from pipeline.evaluate_flags import EvaluateCommand
from pipeline.evaluate_flags import parse as parse_evaluation
from pipeline.flags import Command, WorkersConfig, parse
from pipeline.presets import PRESETS
from pipeline.recipe import Recipe
from stages.models import ModelConfig

Path_ = tuple[str, ...]
VALUES_OF = {int: (0, -1, 2**31 - 1), float: (0.0, -1.0, 1e-30, -1e-30, 1e30)}
EVALUATION = EvaluateCommand(model=ModelConfig(name="evaluated_models:build"), norm="Linf", radius=0.1)
# What does nothing where it is 0, says so in its help, or is a share or weight that may vanish.
MAY_BE_0 = {
    *("seed", "search.trials", "schedule.rounds", "checks.others", "train.warmup_updates"),
    *("train.ema", "train.clip_norm", "train.weight_decay", "classifier.weight_decay", "classifier.label_smoothing"),
    *("train.objective.reconstruction", "train.objective.cross_entropy", "train.objective.kl", "checks.budget"),
    *("train.objective.consistency", "train.objective.consistency_ramp", "train.weight_perturbation"),
    *("schedule.restart", "schedule.last_states", "schedule.clean_states", "evaluation.seed", "checks.size.seed"),
    *("schedule.overlap_rounds", "schedule.clean_rounds", "checks.seed", "data.split_seed"),
}


def numbers_of(kind: type, before: Path_ = ()) -> Iterator[tuple[Path_, type]]:
    """The paths of all fields that are numbers, and whether they are whole."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, path = hints[field.name], (*before, field.name)
        parts = {
            hint,
            *typing.get_args(hint),
            *(inner for each in typing.get_args(hint) for inner in typing.get_args(each)),
        }
        if dataclasses.is_dataclass(hint):
            yield from numbers_of(typing.cast(type, hint), path)
        elif found := parts & {int, float}:
            yield path, found.pop()


def changed(config: typing.Any, path: Path_, value: object) -> typing.Any:
    """The config with another value somewhere below."""
    name, *rest = path
    old = getattr(config, name)
    if rest:
        value = changed(old, tuple(rest), value)
    elif isinstance(old, tuple):
        value = (value,)
    return dataclasses.replace(config, **{name: value})


def said_of(make: typing.Callable[[], object]) -> str | None:
    """The message with which something is refused, None where it is not."""
    try:
        make()
    except (ValueError, SystemExit) as error:
        return str(error)
    return None


KINDS = {("recipe", *path): kind for path, kind in numbers_of(Recipe)} | {
    ("workers", *path): kind for path, kind in numbers_of(WorkersConfig)
}


def test_any_value_of_a_run_makes_sense_or_is_refused_by_its_name(tmp_path: Path) -> None:
    assert len(KINDS) > 60
    for path, kind in KINDS.items():
        name = ".".join(path).removeprefix("recipe.")
        for value in VALUES_OF[kind]:
            command = Command(recipe=PRESETS["digits"](), workers=WorkersConfig(), root=str(tmp_path / "root"))
            said = said_of(lambda path=path, value=value, command=command: make_plan(changed(command, path, value)))
            if said is not None:
                assert path[-1].replace("_", " ") in said.replace("_", " "), (name, value, said)
            if value == 0:
                assert (said is None) == (name in MAY_BE_0), (name, said)
            if value < 0:
                assert said is not None, (name, value)
    assert not (tmp_path / "root").exists()


def test_any_value_of_an_evaluation_makes_sense_or_is_refused_by_its_name() -> None:
    for path, kind in numbers_of(EvaluateCommand):
        for value in VALUES_OF[kind]:

            def make(path: Path_ = path, value: float = value) -> object:
                command = changed(EVALUATION, path, value)
                return command.threat(None), command.evaluation

            said = said_of(make)
            if said is not None:
                assert path[-1].replace("_", " ") in said.replace("_", " "), (path, value, said)
            if value < 0 or (value == 0 and ".".join(path) not in MAY_BE_0):
                assert said is not None, (path, value)


UNREADABLE = ["nan", "inf", "-inf", "", "1e400", "99999999999999999999", "0x10", "one"]


@pytest.mark.parametrize("value", UNREADABLE)
def test_what_is_no_number_is_refused_by_its_flag(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All flags of a kind are read by one rule: one of each, alone and optional, stands for the others."""
    for read, flag in (
        (parse, "--threat.radius"),
        (parse, "--attack.step-size"),
        (parse, "--evaluation.images"),
        (parse, "--judge.images"),
        (lambda argv: parse_evaluation(["--model", "m:b", *argv]), "--radius"),
        (lambda argv: parse_evaluation(["--model", "m:b", *argv]), "--images"),
    ):
        is_float = flag in ("--threat.radius", "--attack.step-size", "--radius")
        if value == "99999999999999999999" and is_float and math.isfinite(float(value)):
            continue
        with pytest.raises(SystemExit, match="2"):
            read([f"{flag}={value}"])
        said = capsys.readouterr()
        assert flag.removeprefix("--") in said.out + said.err
