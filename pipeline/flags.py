"""The command line: a preset, flags that override it, and what is refused before any work is done."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from pipeline.exits import fail
from pipeline.recipe import PRESETS, Recipe, SearchConfig, as_in_paper
from stages.settings import check_settings

USAGE = "python -m pipeline.run [digits|mnist|cifar10-small|cifar10-linf|cifar10-l2] [--flags]"
# An explicit flag fixes what the search would otherwise try.
SEARCHED = {"--attack.steps": "steps", "--attack.step-size": "step_sizes", "--attack.noise-scale": "noise_scales"}
NUMBERS = ConstructorRegistry()
"""How command lines read a field that is a number, and no other: `number` and `whole`."""
SHORT = {
    "--model": "--model.name",
    "--weights": "--model.weights",
    "--mean": "--model.mean",
    "--std": "--model.std",
}
"""Flags that both commands take, by the settings that they set."""
OF_A_RUN = (
    SHORT
    | {"--data": "--data.name", "--norm": "--threat.norm"}
    | {flag: "--threat.radius" for flag in ("--radius", "--eps", "--threat.eps")}
)
TURNS = 2  # processes that may share a CPU of a local session
LARGEST = 2**31 - 1  # of a whole number: beyond it libraries overflow, each in its own way


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Who does the work. None of this changes a result."""

    cpus: int | None = None
    """CPUs of a local session; unset: all of this machine's. A running cluster has its own number."""
    generators: int | None = None
    """Generator actors, at most one a cohort of a round; unset: as many as fit beside the train worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto: on GPUs where the cluster has any."""

    def __post_init__(self) -> None:
        check_settings(self, "workers")
        for name, value in {"cpus": self.cpus, "generators": self.generators}.items():
            if value is not None and value < 1:
                raise ValueError(f"workers.{name} is {value}; it must be at least 1, or left unset")
        present = os.cpu_count() or 1
        if self.cpus is not None and self.cpus > TURNS * present:
            raise ValueError(
                f"workers.cpus is {self.cpus}, and this machine has {present}: a process for each would take its "
                f"memory; it must be at most {TURNS * present}, or left unset"
            )


@dataclass(frozen=True, kw_only=True)
class Command:
    """Make an image classifier robust with an adapter, and measure how robust it is."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    workers: WorkersConfig
    root: str = "rap-runs"
    """Where all results go: a directory (on a cluster, one that every node sees), or s3://, gs:// or az:// with a
    bucket and a path."""
    name: str | None = None
    """Name of the run; unset: the preset and a hash of what is trained, so the same command goes on with its own run,
    and one that only evaluates otherwise takes the model that is there."""
    keep_versions: bool = False
    """Keep the weights after every round, from which lost shards can be made again; unset: only the last checkpoint and
    the best."""
    dry_run: bool = False
    """Print the stages, whether they are built, and what the rest costs; do nothing."""
    paper: bool = False
    """Start from the paper's own settings instead of the preset's."""
    preset: tyro.conf.Suppress[str] = "digits"


def parse(argv: list[str]) -> Command:
    """The command that the arguments give. Ends with exit code 2 and one message where they make no sense."""
    check_flags(argv)
    preset, flags = "digits", argv
    if argv and not argv[0].startswith("-"):
        preset, flags = argv[0], argv[1:]
    if preset not in PRESETS:
        fail(f"unknown preset {preset!r}; allowed are {', '.join(PRESETS)}. Usage: {USAGE}")
    recipe = PRESETS[preset]()
    if "--paper" in flags:
        recipe = as_in_paper(recipe)
    default = Command(recipe=recipe, workers=WorkersConfig(), preset=preset)
    flags = in_full(flags, OF_A_RUN)
    try:
        command = tyro.cli(Command, prog=USAGE, default=default, args=flags, registry=NUMBERS)
    except ValueError as error:  # a config's own check, in its own words
        fail(str(error))
    fixed = {field: () for flag, field in SEARCHED.items() if _given(flag, flags)}
    search: SearchConfig = replace(command.recipe.search, **fixed)
    return replace(command, recipe=replace(command.recipe, search=search))


def check_flags(argv: list[str]) -> None:
    """End with exit code 2 and one message where a flag has an empty value, as an unset variable of a shell gives."""
    for before, given in zip(["", *argv], argv, strict=False):
        flag, _, value = given.partition("=") if given.startswith("--") and "=" in given else (before, "", given)
        if not value.strip():
            fail(f"{flag or 'the first argument'} is given an empty value: name one, or leave the flag out")


def in_full(argv: list[str], names: Mapping[str, str]) -> list[str]:
    """The arguments with the full names of flags that have shorter ones."""
    written = []
    for given in argv:
        flag, equals, value = given.partition("=")
        written.append(f"{names.get(flag, flag)}{equals}{value}")
    return written


def number(text: str) -> float:
    """A finite number, as a decimal or as a fraction such as 8/255. Raises ValueError for anything else."""
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / (float(denominator) if slash else 1.0)
    except ZeroDivisionError:
        raise ValueError(f"{text} divides by zero") from None
    except ValueError:
        raise ValueError(f"{text!r} is no number: give a decimal, or a fraction such as 8/255") from None
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def whole(text: str) -> int:
    """A whole number that a count or a seed may be. Raises ValueError for anything else."""
    value = int(text)
    if abs(value) > LARGEST:
        raise ValueError(f"{text} is larger than {LARGEST}, which no count or seed needs to be")
    return value


@NUMBERS.primitive_rule
def _int_rule(field: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    if field.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda arguments: whole(arguments[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


@NUMBERS.primitive_rule
def _float_rule(field: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
    if field.type is not float:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda arguments: number(arguments[0]),
        is_instance=lambda value: isinstance(value, int | float) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def _given(flag: str, flags: list[str]) -> bool:
    return any(given.partition("=")[0].replace("_", "-") == flag for given in flags)
