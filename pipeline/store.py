"""python -m pipeline.store ROOT ls|verify|usage|prune|rebuild|export: what runs have stored, as data.

Nothing here attacks or trains. `TrajectoryDataset` (stages/trajectories/dataset.py) reads the same from Python.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Annotated

import tyro
from tyro.conf import Positional, arg, subcommand

from pipeline.artifacts import ArtifactError, check_name
from pipeline.exits import ClaimedError, conduct, fail, refusing, settings_called
from pipeline.flags import NUMBERS, check_flags
from pipeline.inventory import Folder, Inventory
from pipeline.progress import Say
from pipeline.tell.run_facts import Totals
from stages.lease import TakenError, lease
from stages.paths import local_path
from stages.storage import Entry, Storage
from stages.trajectories.dataset import TrajectoryDataset, training_images
from stages.trajectories.export import export

OLDEST = 1_000_000  # hours, a century
USAGE = "python -m pipeline.store ROOT ls|verify|usage|prune|rebuild|export [--flags]"


@dataclass(frozen=True, kw_only=True)
class List:
    """Runs and evaluations, how far they are, and how much they have stored."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read everything and compare its checksums; exit code 1 where something is damaged or missing."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes by kind, and how much of each no run or evaluation needs."""


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Delete what no run, search or evaluation needs: shards, receipts, and what finished trials and trainings left."""

    drop: tuple[str, ...] = ()
    """Runs, searches and evaluations, as runs/NAME, searches/NAME and evaluations/NAME, that are deleted as well, with
    what only they need."""
    older_hours: float = 24.0
    """Keep what is younger than this: a command at work may be about to need it. What is dropped goes at any age."""
    yes: bool = False
    """Delete; unset: only say what would be."""

    def __post_init__(self) -> None:
        if not 0 <= self.older_hours <= OLDEST:
            raise ValueError(f"--older-hours is {self.older_hours:g}; it must be between 0 and {OLDEST:,}")


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """Write ledgers again from the shards."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A run's trajectories as NAME.zarr, NAME.npz, or a folder of PNGs with table.parquet."""

    run: Positional[str]
    """Name of the run."""
    to: Positional[str]
    """Where to: NAME.zarr, NAME.npz, or a folder's name."""
    state: str = "last"
    """State of each segment: a number (0: the start of the visit), last, or all."""
    first_round: int = 0
    """Rounds from this one on."""
    last_round: int | None = None
    """Rounds up to this one; unset: to the last one that is written down."""
    success: bool | None = None
    """Only states that the attacked weights misclassified (True), or did not (False)."""
    classes: tuple[int, ...] = ()
    """Only images of these classes."""
    data_root: str | None = None
    """Folder of the run's data set, as --data.root of the run."""
    data_download: bool = False
    """Fetch the data set to that folder where it is absent."""


Action = (
    Annotated[List, subcommand(name="ls")]
    | Annotated[Verify, subcommand(name="verify")]
    | Annotated[Usage, subcommand(name="usage")]
    | Annotated[Prune, subcommand(name="prune")]
    | Annotated[Rebuild, subcommand(name="rebuild")]
    | Annotated[Export, subcommand(name="export")]
)


@dataclass(frozen=True, kw_only=True)
class StoreCommand:
    """What runs have stored: look at it, check it, tidy it up, take it elsewhere."""

    root: Positional[str]
    """The --root of the runs: a directory or a URL."""
    action: Annotated[Action, arg(name="")]


def listed(inventory: Inventory) -> str:
    """What `ls` prints."""
    lines = [f"{inventory.root}"]
    for folder, each in inventory.kept.items():
        about = _about(inventory, each) if folder.startswith("runs/") else each.robust_accuracy
        lines.append(f"  {folder:40} {about}")
    for training, entries in sorted(inventory.trainings.items()):
        state = "done" if inventory.is_done(training) else "to go on"
        lines.append(f"  {training:40} {_size(sum(each.bytes for each in entries))}, {state}")
    return "\n".join(lines if len(lines) > 1 else [*lines, "  nothing is there"])


def _about(inventory: Inventory, run: Folder) -> str:
    totals = Totals.of(inventory.ledger(run.folder))
    done = run.robust_accuracy or ("trained" if run.trained == run.rounds else "begun")
    return (
        f"{run.preset}, {run.trained} of {run.rounds} rounds, {totals.shards:,} shards, {totals.segments:,} segments, "
        f"{_size(totals.bytes)}; {done}"
    )


def verify(inventory: Inventory, say: Say) -> str:
    """Look at everything. Raises ArtifactError with all that is wrong."""
    count, wrong = 0, []
    for place, damage in inventory.looked_at():
        count += 1
        if damage:
            say(f"{place} is damaged or missing")
            wrong.append(damage)
        elif count % 1000 == 0:
            say(f"{count:,} looked at")
    if wrong:
        raise ArtifactError("\n".join([f"{len(wrong)} of {count:,} are damaged or missing:", *wrong]))
    return f"all of {count:,} shards, artifacts, checkpoints and ledgers are as they were written"


def used(inventory: Inventory) -> str:
    """What `usage` prints."""
    found: dict[str, list[int]] = {}
    for entry in inventory.root.entries():
        sums = found.setdefault(_kind(entry), [0, 0, 0])
        sums[0], sums[1] = sums[0] + 1, sums[1] + entry.bytes
    for entry in inventory.unneeded():
        found.setdefault(_kind(entry), [0, 0, 0])[2] += entry.bytes
    rows = [f"{'':24}{'objects':>12}{'size':>12}{'not needed':>12}"]
    rows += [f"{kind:24}{n:>12,}{_size(size):>12}{_size(free):>12}" for kind, (n, size, free) in sorted(found.items())]
    return "\n".join([*rows, *_unknown(inventory)])


def _kind(entry: Entry) -> str:
    """The folder below the root, and of artifacts their kind."""
    parts = entry.key.split("/")
    return "/".join(parts[:2]) if parts[0] == "store" else parts[0]


def _unknown(inventory: Inventory) -> Iterator[str]:
    unfinished = [folder for folder, each in inventory.kept.items() if not each.finished]
    if unfinished:
        yield f"receipts all count as needed, since these are not finished: {', '.join(unfinished)}"


def prune(inventory: Inventory, config: Prune, say: Say) -> str:
    """Delete, or say, what is not needed. Raises ClaimedError where a run or search is at work."""
    unknown = [folder for folder in config.drop if folder not in inventory.kept]
    if unknown:
        known = ", ".join(inventory.kept) or "none"
        raise ClaimedError(f"--drop {unknown[0]}: there is no such run, search or evaluation; there are: {known}")
    left = [each for folder, each in inventory.kept.items() if folder not in config.drop]
    if borrowers := [each for each in left if each.source in config.drop]:
        raise ClaimedError(
            f"--drop {borrowers[0].source}: {borrowers[0].folder} was begun from its shards (--train.from-cache), and "
            "could not be gone on with; drop that as well, or keep both"
        )
    with ExitStack() as stack:
        for folder in inventory.owned:
            try:
                stack.enter_context(lease(inventory.root.below(folder), "lock"))
            except TakenError as error:
                raise ClaimedError(f"{error}, since what a run at work needs is not known") from None
        count = size = 0
        older = timedelta(hours=config.older_hours)
        unneeded = inventory.unneeded(dropped=config.drop, older=older)
        while some := list(islice(unneeded, 10_000)):
            count, size = count + len(some), size + sum(each.bytes for each in some)
            if config.yes:
                inventory.root.delete(each.key for each in some)
                say(f"{count:,} objects deleted")
    done = "were deleted" if config.yes else "would be deleted by --yes"
    young = f"; what is younger than {config.older_hours:g} hours is kept (--older-hours)" * (config.older_hours > 0)
    return "\n".join([f"{count:,} objects of {_size(size)} {done}{young}", *_unknown(inventory)])


def rebuild(inventory: Inventory, say: Say) -> str:
    """Write all ledgers again."""
    for folder in inventory.runs:
        say(f"{folder}: {inventory.rebuild_ledger(folder)} rounds")
    return "the ledgers are written again"


def export_run(inventory: Inventory, config: Export, say: Say) -> str:
    """Write a run's trajectories elsewhere. Raises ValueError for what there is not."""
    try:
        check_name(config.run, "runs are kept in ROOT/runs/NAME", "the run's name")
        last = inventory.ledger(config.run).rounds - 1 if config.last_round is None else config.last_round
        place = local_path(config.to, "export")
        with settings_called({"data_download": "--data-download", "data_root": "--data-root"}):
            images = partial(
                training_images,
                inventory.root,
                config.run,
                data_root=config.data_root,
                data_download=config.data_download,
            )
            data = TrajectoryDataset(
                inventory.root,
                run=config.run,
                rounds=range(config.first_round, last + 1),
                state=int(config.state) if config.state.isdecimal() else config.state,
                success=config.success,
                classes=config.classes or None,
                images=images,
            )
        say(f"{len(data):,} segments of run {config.run} to {place}")
        export(data, place, progress=lambda done: say(f"{done:,} of {len(data):,}"))
    except ValueError as error:  # before anything was written
        fail(str(error))
    except OSError as error:
        if not error.filename:
            raise
        fail(f"{error.filename} cannot be written ({error.strerror}): name another place")
    return f"{place}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def parse(argv: list[str]) -> StoreCommand:
    """The command that the arguments give. Raises ValueError, or ends with exit code 2, where they make no sense."""
    check_flags(argv)
    return tyro.cli(StoreCommand, prog=USAGE, args=argv, registry=NUMBERS)


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code, as `conduct` says."""
    with refusing():
        command = parse(sys.argv[1:] if argv is None else argv)
        root = Storage.at(command.root)
        if not root.names():
            fail(f"nothing lies below {root}: name the --root of your runs")
    inventory, action = Inventory(root), command.action

    def work(say: Say) -> str:
        match action:
            case List():
                return listed(inventory)
            case Verify():
                return verify(inventory, say)
            case Usage():
                return used(inventory)
            case Prune():
                return prune(inventory, action, say)
            case Rebuild():
                return rebuild(inventory, say)
            case Export():
                return export_run(inventory, action, say)

    return conduct(work, root=command.root)


if __name__ == "__main__":
    sys.exit(main())
