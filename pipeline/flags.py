"""The command line: a preset, flags that override it, and what is refused before any work is done."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from pipeline.axes import DEFAULT_SPACE, default_space, read_space
from pipeline.exits import LogLevel, fail
from pipeline.fields import flag, number, whole
from pipeline.presets import PRESETS, as_in_paper
from pipeline.recipe import Recipe
from pipeline.recipe_files import read_recipe
from pipeline.tracking import Tool, check_tracker
from stages.settings import check_settings

USAGE = f"python -m pipeline.run [{'|'.join(PRESETS)}] [--flags]"
NUMBERS = ConstructorRegistry()
"""How command lines read a field that is a number, and no other: `number` and `whole`."""
SHORT = {
    "--model": "--model.name",
    "--weights": "--model.weights",
    "--mean": "--model.mean",
    "--std": "--model.std",
    "--data": "--data.name",
}
"""Flags that both commands take, by the settings that they set."""
OF_A_RUN = (
    SHORT
    | {"--norm": "--threat.norm", "--trials": "--search.trials"}
    | {flag: "--threat.radius" for flag in ("--radius", "--eps", "--threat.eps")}
)
TURNS = 2  # processes that may share a CPU of a local session


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Who does the work. None of this changes a result."""

    cpus: int | None = None
    """CPUs of a local session; unset: all of this machine's. A running cluster has its own number."""
    generators: int | None = None
    """Generator actors, at most one a cohort of a round; unset: as many as fit beside the train worker."""
    trials: int | None = None
    """Trials of a search that run at once; unset: as many as there is room for."""
    trial_gpus: float | None = None
    """GPUs of a trial, or a share of one such as 0.5; unset: 1 where networks run on GPUs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto: on GPUs where the cluster has any."""

    def __post_init__(self) -> None:
        check_settings(self, "workers")
        for name in ("cpus", "generators", "trials"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"workers.{name} is {value}; it must be at least 1, or left unset")
        if self.trial_gpus is not None and (self.trial_gpus <= 0 or (self.trial_gpus > 1 and self.trial_gpus % 1)):
            raise ValueError(
                f"workers.trial_gpus is {self.trial_gpus:g}; it must be a share of a GPU, greater than 0, or a whole "
                "number of them, or left unset"
            )
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
    recipe_file: Annotated[str | None, tyro.conf.arg(name="recipe")] = None
    """Start from the recipe in a file instead of a preset: best.json of a search, recipe.json of a run, or YAML."""
    paper: bool = False
    """Start from the paper's own settings instead of the preset's."""
    track: Tool | None = None
    """Show the figures of a run, or of a search's trials, in MLflow or Weights & Biases as well, by their own clients;
    unset: TensorBoard's events alone."""
    log_level: LogLevel = "warning"
    """What of Python's log is shown, of this project, Ray and other libraries; from info on also what workers print."""
    preset: tyro.conf.Suppress[str] = "digits"


def parse(argv: list[str], *, usage: str = USAGE, purpose: str | None = None, trials: int = 0) -> Command:
    """The command that the arguments give; ``trials`` are the search's where preset or file have none.

    Ends with exit code 2 and one message where they make no sense.
    """
    check_flags(argv)
    named = argv[:1] if argv and not argv[0].startswith("-") else []
    flags = in_full(argv[len(named) :], OF_A_RUN)
    preset, recipe = _start(named, flags, usage)
    if "--paper" in flags:
        recipe = as_in_paper(recipe)
    if not recipe.search.trials:
        recipe = replace(recipe, search=replace(recipe.search, trials=trials))
    default = Command(recipe=recipe, workers=WorkersConfig(), preset=preset)
    try:
        command = tyro.cli(Command, prog=usage, description=purpose, default=default, args=flags, registry=NUMBERS)
    except ValueError as error:  # a config's own check, in its own words
        fail(str(error))
    try:
        if command.track:
            check_tracker(command.track)
        return replace(command, recipe=_with_space(command.recipe, flags))
    except ValueError as error:
        fail(str(error))


def _value(wanted: str, flags: list[str]) -> str | None:
    """What a flag is given as; None where it is not there."""
    for given, following in zip(flags, [*flags, ""][1:], strict=True):
        name, equals, value = given.partition("=")
        if name == wanted:
            return value if equals else following
    return None


def _start(named: list[str], flags: list[str], usage: str) -> tuple[str, Recipe]:
    """The recipe that flags override, and its preset: the one that is named, or of a file, or that fits the data."""
    file, data = _value("--recipe", flags), _value("--data.name", flags)
    preset = named[0] if named else "own" if data and ":" in data else "digits"
    if preset not in PRESETS:
        fail(f"unknown preset {preset!r}; allowed are {', '.join(PRESETS)}. Usage: {usage}")
    if file is None:
        return preset, PRESETS[preset]()
    if named:
        fail(f"{preset} and --recipe {file} are both recipes to start from: give one of them")
    try:
        return read_recipe(file)
    except ValueError as error:
        fail(f"--recipe {file}: {error}")


def _with_space(recipe: Recipe, flags: list[str]) -> Recipe:
    """The recipe with the space that its search goes through; a setting that is given as a flag is not in it.

    Raises ValueError where that leaves nothing to search, or a setting is given and searched at once.
    """
    search = recipe.search
    if not search.trials:
        return recipe
    recipe.loop()  # what the recipe itself gets wrong comes first
    fixed = [name for name in DEFAULT_SPACE if is_given(f"--{flag(name)}", flags)]
    space = search.space or default_space(recipe, fixed)
    if not space:
        raise ValueError(
            f"{', '.join(map(flag, DEFAULT_SPACE))} are all given, so nothing is left to search: leave one out, "
            "name others with --search.space, or give --search.trials 0"
        )
    for name in read_space(recipe, space):
        if is_given(f"--{flag(name)}", flags):
            raise ValueError(f"--{flag(name)} is given, and --search.space searches it: leave one of the two out")
    return replace(recipe, search=replace(search, space=space))


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


def is_given(flag: str, flags: list[str]) -> bool:
    """Whether a flag is among the arguments."""
    return any(given.partition("=")[0].replace("_", "-") == flag for given in flags)
