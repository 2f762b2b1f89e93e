"""The command line: a preset, flags that override it, and what is refused before any work is done."""

import errno
import os
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro

from pipeline.artifacts import ArtifactError
from pipeline.recipe import PRESETS, Recipe, SearchConfig, as_in_paper
from stages.training.versions import VersionMismatchError
from stages.trajectories.ledger import LedgerError
from stages.trajectories.shards import ShardError

USAGE = "python -m pipeline.run [digits|mnist|cifar10-linf|cifar10-l2] [--flags]"
FRACTION = re.compile(r"^(-?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)$")
# An explicit flag fixes what the search would otherwise try.
SEARCHED = {"--attack.steps": "steps", "--attack.step-size": "step_sizes", "--attack.noise-scale": "noise_scales"}

LITTLE = 2**20  # bytes left of a disk that count as full, since not every library says why it could not write
DAMAGE = (ArtifactError, LedgerError, ShardError, VersionMismatchError)
"""Files that are not what was written, which each message names."""


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Who does the work. None of this changes a result."""

    cpus: int | None = None
    """CPUs of a local session; unset: all of this machine's. A running cluster has its own number."""
    generators: int | None = None
    """Generator actors; unset: as many as fit beside the train worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto: on GPUs where the cluster has any."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Make an image classifier robust with an adapter, and measure how robust it is."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    workers: WorkersConfig
    root: str = "rap-runs"
    """Folder of all results: the store, the ledger and the runs. On a cluster, one that every node sees."""
    name: str | None = None
    """Name of the run; unset: the preset and a hash of what is trained, so the same command goes on with its own run,
    and one that only evaluates otherwise takes the model that is there."""
    keep_versions: bool = False
    """Keep the weights after every round; unset: only those that a round in the replay window may still ask for, and
    the best."""
    dry_run: bool = False
    """Print the stages, whether they are built, and what the rest costs; do nothing."""
    paper: bool = False
    """Start from the paper's own settings instead of the preset's."""
    preset: tyro.conf.Suppress[str] = "digits"


def parse(argv: list[str]) -> Command:
    """The command that the arguments give. Ends with exit code 2 and one message where they make no sense."""
    preset, flags = "digits", argv
    if argv and not argv[0].startswith("-"):
        preset, flags = argv[0], argv[1:]
    if preset not in PRESETS:
        fail(f"unknown preset {preset!r}; allowed are {', '.join(PRESETS)}. Usage: {USAGE}")
    recipe = PRESETS[preset]()
    if "--paper" in flags:
        recipe = as_in_paper(recipe)
    default = Command(recipe=recipe, workers=WorkersConfig(), preset=preset)
    try:
        command = tyro.cli(Command, prog=USAGE, default=default, args=[decimal(flag) for flag in flags])
    except ValueError as error:  # a config's own check, in its own words
        fail(str(error))
    fixed = {field: () for flag, field in SEARCHED.items() if _given(flag, flags)}
    search: SearchConfig = replace(command.recipe.search, **fixed)
    return replace(command, recipe=replace(command.recipe, search=search))


def fail(message: str) -> NoReturn:
    """End with exit code 2 and a message: nothing was done."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def stop(error: Exception) -> int:
    """Say why a command ended in the middle; its exit code. Nothing committed is lost."""
    print(f"error: {error}", file=sys.stderr)
    return 1


def stop_if_full(error: Exception, root: str) -> int:
    """Say that the disk below ROOT is full, where that is why an error came up, which else is raised again."""
    chain, current = [], error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    spoken = any(os.strerror(errno.ENOSPC) in str(each) or os.strerror(errno.EDQUOT) in str(each) for each in chain)
    path = Path(root).expanduser()
    if not spoken and not (path.exists() and shutil.disk_usage(path).free < LITTLE):
        raise error
    return stop(
        OSError(
            f"the disk of {path} is full: free some space, or copy the folder to a larger one and name that with "
            "--root; nothing committed is lost, and the same command goes on from here"
        )
    )


def decimal(argument: str) -> str:
    """8/255 as a decimal number, alone or behind `--flag=`; anything else as it is."""
    flag, equals, value = argument.rpartition("=")
    match = FRACTION.match(value)
    if match is None:
        return argument
    denominator = float(match[2])
    if denominator == 0:
        fail(f"{argument} divides by zero")
    return f"{flag}{equals}{float(match[1]) / denominator!r}"


def _given(flag: str, flags: list[str]) -> bool:
    return any(given.partition("=")[0].replace("_", "-") == flag for given in flags)
