"""How a command ends: its exit code, and one message where something is wrong."""

import errno
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NoReturn

from cluster.parcels import ParcelError
from cluster.session import Interrupted, PlacementError, SessionLostError
from cluster.tasks import PoolError
from pipeline.artifacts import ArtifactError
from pipeline.progress import Say, Spoken
from stages.evaluation.verdict import AttackError
from stages.lease import LeaseLostError
from stages.numerics import DeviceMemoryError
from stages.storage_errors import StorageError
from stages.training.diverged import DivergedError
from stages.training.versions import VersionMismatchError
from stages.trajectories.ledger import LedgerError
from stages.trajectories.shards import ShardError


class SearchError(RuntimeError):
    """A search whose trials keep dying, or all of which failed."""


DAMAGE = (ArtifactError, LedgerError, ShardError, VersionMismatchError)
"""What is not what was written, which each message names."""
FAILED = (StorageError, LeaseLostError, AttackError, DeviceMemoryError, DivergedError, SessionLostError, SearchError)
"""What goes wrong in the middle, with what to do in its message."""
FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
LITTLE = 2**20  # bytes left of a disk that count as full, since not every library says why it could not write


class ClaimedError(ValueError):
    """A run that another process owns, or that was begun with another recipe."""


LogLevel = Literal["debug", "info", "warning", "error"]


def conduct(work: Callable[[Say], str], *, root: str, log_level: LogLevel = "warning") -> int:
    """Do a command's work, which says what it does, and print what it returns; the exit code.

    0; 1 for damaged files, an attack that fails, a training that diverges, a search that finds nothing, a full disk or
    device, processes that keep dying, or a Ray that is lost; 2 for work that was refused before it began; as shells
    count signals, 130 for Ctrl-C, 141 for a pipe that was cut and 143 for SIGTERM. What is none of these is raised.
    """
    shown = logging.StreamHandler()
    shown.setLevel(log_level.upper())  # also for loggers with a level of their own, as AutoAttack's
    logging.basicConfig(level=log_level.upper(), handlers=[shown], format="%(levelname)s %(name)s: %(message)s")
    try:
        with Spoken() as say:
            result = work(say)
            say.keep(result)
        print(result)
    except (ClaimedError, ParcelError, PlacementError) as error:
        fail(str(error))
    except (*DAMAGE, *FAILED) as error:
        return _stop(str(error))
    except BrokenPipeError:
        return _unheard()
    except KeyboardInterrupt as error:
        print("interrupted; nothing committed is lost, and the same command resumes from here")
        return 128 + (signal.SIGTERM if isinstance(error, Interrupted) else signal.SIGINT)
    except Exception as error:
        path = Path(root).expanduser()
        if full := _full(path, error):
            larger = "copy the folder to a larger one and name that with --root" if full == path else "set TMPDIR"
            return _stop(
                f"the disk of {full} is full: free some space, or {larger}; nothing committed is lost, and the same "
                "command resumes from here"
            )
        if isinstance(error, PoolError):
            return _stop(f"{error}; nothing committed is lost, and the same command resumes from here")
        raise
    return 0


@contextmanager
def settings_called(names: Mapping[str, str]) -> Iterator[None]:
    """What a config's own checks find inside of the block, in the names that whoever asks has for its settings."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        for setting, name in names.items():
            said = said.replace(setting, name)
        raise ValueError(said) from error


@contextmanager
def refusing() -> Iterator[None]:
    """Inside, what is wrong with a command ends it in one message before its work: exit code 2, 1 for damaged
    files, and 130 for Ctrl-C."""
    try:
        yield
    except ValueError as error:
        fail(str(error))
    except DAMAGE as error:
        raise SystemExit(_stop(str(error))) from None
    except KeyboardInterrupt:
        print("interrupted before any work")
        raise SystemExit(128 + signal.SIGINT) from None


def fail(message: str) -> NoReturn:
    """End with exit code 2 and a message: nothing was done."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _stop(message: str) -> int:
    """Say why a command ended in the middle; its exit code. Nothing committed is lost."""
    print(f"error: {message}", file=sys.stderr)
    return 1


def _unheard() -> int:
    """End as whoever reads the output did, such as ``head``: the exit code of SIGPIPE, and no traceback."""
    with suppress(OSError, ValueError):  # no such descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be flushed goes there
    message = "nobody reads the output any more; nothing committed is lost, and the same command resumes from here"
    print(f"error: {message}", file=sys.stderr)
    return 128 + signal.SIGPIPE


def _full(root: Path, error: BaseException | None) -> Path | None:
    """The root, or the folder of temporary files, whose disk has no room, by what is left, or by what an error or its
    causes say."""
    for each in (root, Path(tempfile.gettempdir())):
        if each.exists() and shutil.disk_usage(each).free < LITTLE:
            return each
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if any(words in str(error) for words in FULL):
            return root
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
