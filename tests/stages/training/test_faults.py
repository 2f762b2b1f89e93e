"""A loop whose process, disk or object store fails, at seeded moments: the same command ends in the same weights."""

import errno
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from s3_faults import FaultyS3
from tiny_runs import published, same_shards, setup_of

from stages import storage
from stages.storage import Storage
from stages.storage_errors import StorageError
from stages.training.rounds import run_serially
from stages.training.setup import Setup

MOMENTS = 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    setup = setup_of(tmp_path_factory.mktemp("undisturbed"))
    run_serially(setup)
    return setup


def same(setup: Setup, wanted: Setup) -> bool:
    return (
        published(setup) == published(wanted)
        and same_shards(setup, wanted)
        and [row.fingerprint for row in setup.ledger.rows()] == [row.fingerprint for row in wanted.ledger.rows()]
    )


class Writes:
    """Counts what a storage is asked to write, and calls ``fail`` instead of the n-th, or after it."""

    def __init__(self, number: int, after: bool, fail: Callable[[], None]) -> None:
        self.number, self.after, self.fail = number, after, fail
        self.done = 0

    def put(self, place: Storage, key: str, content: bytes) -> None:
        self.done += 1
        hit = self.done == self.number
        if hit and not self.after:
            self.fail()
        ORIGINAL_PUT(place, key, content)
        if hit and self.after:
            self.fail()


ORIGINAL_PUT = Storage.put


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(root: Path, number: int, after: bool) -> None:
    writes = Writes(number, after, die)
    Storage.put = lambda self, key, content: writes.put(self, key, content)  # pyright: ignore[reportAttributeAccessIssue]
    run_serially(setup_of(root))


def test_a_process_that_is_killed_at_any_of_ten_moments_is_made_good_by_the_next(
    undisturbed: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, codes = random.Random(0), []
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # from which the server imports what it preloads
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tiny_runs", "stages.training.rounds"])
    for _ in range(MOMENTS):
        moment = tmp_path, chosen.randint(1, 9), chosen.random() < 0.5
        process = processes.Process(target=run_and_die, args=moment)
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes.count(-signal.SIGKILL) >= MOMENTS - 2  # some may have had less left to write
    setup = setup_of(tmp_path)
    run_serially(setup)
    assert same(setup, undisturbed)


def test_a_disk_that_is_full_at_any_of_ten_moments_is_named_and_the_same_call_goes_on(
    undisturbed: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, setup, failed = random.Random(1), setup_of(tmp_path), []

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for _ in range(MOMENTS):
        writes = Writes(chosen.randint(1, 9), False, full)
        monkeypatch.setattr(Storage, "put", lambda self, key, content, writes=writes: writes.put(self, key, content))
        try:
            run_serially(setup)
        except OSError as error:
            failed.append(error.errno)
    assert failed.count(errno.ENOSPC) == len(failed) >= MOMENTS - 2
    monkeypatch.undo()
    run_serially(setup)
    assert same(setup, undisturbed)


@pytest.mark.parametrize("fault", ["500", "503", "lost", "answer lost"])
def test_a_bucket_that_fails_now_and_then_changes_nothing(
    fault: str, s3_server: FaultyS3, s3_bucket: str, undisturbed: Setup, tmp_path: Path
) -> None:
    failing = set(random.Random(2).sample(range(60), MOMENTS))
    setup = setup_of(f"{s3_bucket}/{tmp_path.name}")
    with s3_server.failing(lambda number: fault if number in failing else None):
        run_serially(setup)
    assert s3_server.failed == MOMENTS
    assert same(setup, undisturbed)


@pytest.mark.parametrize("moment", [3, 40])
def test_a_bucket_that_is_gone_ends_a_run_with_one_message_and_the_same_call_goes_on(
    moment: int,
    s3_server: FaultyS3,
    s3_bucket: str,
    undisturbed: Setup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = setup_of(f"{s3_bucket}/{tmp_path.name}")
    with monkeypatch.context() as impatient, s3_server.failing(lambda number: "lost" if number >= moment else None):
        impatient.setattr(storage, "PATIENT", storage.BRIEF / 10)
        storage._client.cache_clear()
        with pytest.raises(StorageError, match="cannot be reached; check the network") as ended:
            run_serially(setup)
        assert "not-for-messages" not in str(ended.value)
    storage._client.cache_clear()
    monkeypatch.setattr("stages.lease.EXPIRES", 0.0)  # whoever could not give it back is not waited for
    run_serially(setup)
    assert same(setup, undisturbed)
