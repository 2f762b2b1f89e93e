"""The first test of the project: however the loop is run, it publishes the same bytes."""

import contextlib
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from loops import ROUNDS, loop_workers, published, shards_of, trained_lines
from s3_faults import FaultyS3

from cluster import board
from cluster.tasks import PoolError
from pipeline.defend.loop import run_loop
from stages.storage_errors import StorageError
from stages.training.rounds import run_serially
from stages.training.setup import Setup
from stages.trajectories.shards import AlteredShardError, read_shard, shard_key

pytestmark = pytest.mark.ray


def same(setup: Setup, wanted: Setup) -> bool:
    """Whether two runs published, stored and recorded the same."""
    rows = [(row.fingerprint, row.round, row.unit) for row in setup.ledger.rows()]
    return (
        published(setup) == published(wanted)
        and shards_of(setup) == shards_of(wanted)
        and trained_lines(setup) == trained_lines(wanted)
        and setup.journal.best_weights()[1] == wanted.journal.best_weights()[1]
        and rows == [(row.fingerprint, row.round, row.unit) for row in wanted.ledger.rows()]
    )


def test_overlap_changes_what_is_attacked(undisturbed: dict[int, Setup]) -> None:
    assert published(undisturbed[0])["1"] == published(undisturbed[1])["1"]  # both attack v_0 in round 0
    assert published(undisturbed[0])["2"] != published(undisturbed[1])["2"]


def test_the_loop_on_ray_publishes_the_bytes_of_the_serial_loop(
    ray_session: object, make_setup: Callable[..., Setup], undisturbed: dict[int, Setup], tmp_path: Path
) -> None:
    """On two generators; the loops below begin with one."""
    setup, seen = make_setup(tmp_path, 0), []
    made = run_loop(setup, loop_workers(2), progress=lambda line: seen.append(line["round"]))
    assert set(published(setup)) == {str(number) for number in range(ROUNDS + 1)}
    assert same(setup, undisturbed[0])
    assert seen == list(range(ROUNDS))
    assert made == len(shards_of(setup))


def test_a_bucket_that_refuses_a_loop_in_the_middle_and_then_fails_now_and_then_changes_nothing(
    ray_session: object,
    make_setup: Callable[..., Setup],
    undisturbed: dict[int, Setup],
    s3_server: FaultyS3,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup, chosen = make_setup(f"{s3_bucket}/{tmp_path.name}"), random.Random(3)
    with s3_server.failing(lambda number: "403" if number >= 30 else None):
        with pytest.raises(StorageError, match=r"no rights to read or write there .*check the credentials") as ended:
            run_loop(setup, loop_workers(2), progress=lambda line: None)
        assert "not-for-messages" not in str(ended.value)
    assert not setup.is_complete
    monkeypatch.setattr("stages.lease.EXPIRES", 0.0)  # whoever could not give it back is not waited for
    faults = {number: chosen.choice(("500", "503", "lost", "answer lost")) for number in chosen.sample(range(60), 10)}
    with s3_server.failing(faults.get):
        run_loop(setup, loop_workers(2), progress=lambda line: None)
    assert s3_server.failed == len(faults)
    assert same(setup, undisturbed[1])


def test_a_loop_goes_on_from_its_last_checkpoint_and_a_damaged_parent_is_made_again_from_kept_weights_else_named(
    ray_session: object, make_setup: Callable[..., Setup], undisturbed: dict[int, Setup], tmp_path: Path
) -> None:
    setup, lost = make_setup(tmp_path / "kept"), replace(make_setup(tmp_path / "lost"), keep_versions=False)

    def interrupt(line: dict) -> None:
        if line["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_loop(setup, loop_workers(1), progress=interrupt)
    assert not setup.is_complete
    trained = {name for line in setup.journal.lines()[: setup.journal.checkpointed] for name in line["shards"]}
    last = [row for row in undisturbed[1].ledger.rows() if row.round == ROUNDS - 1]
    parent = next(row.parent for row in last if row.parent in trained)
    setup.root.delete([shard_key(row.fingerprint) for row in last])  # so that their parents are read
    setup.root.put(shard_key(parent), setup.root.get(shard_key(parent))[:-1])
    shutil.copytree(tmp_path / "kept", tmp_path / "lost", ignore=shutil.ignore_patterns("versions"))
    with pytest.raises(AlteredShardError, match=f"{parent}.* or remove .*train, and the same command"):
        run_serially(lost)
    before = len(setup.root.names("trajectories"))
    made = run_loop(setup, loop_workers(2), progress=lambda line: None)
    assert same(setup, undisturbed[1])
    assert made <= 1 + len(shards_of(setup)) - before  # none of those that were there but the damaged one


def test_killed_workers_change_nothing(
    request: pytest.FixtureRequest,
    ray_session: object,
    make_setup: Callable[..., Setup],
    undisturbed: dict[int, Setup],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kills, chosen = int(request.config.getoption("--kills") or 1), random.Random(0)
    victims = ["generator", "train worker", "board"] * kills
    wanted, setup = undisturbed[1], make_setup(tmp_path)
    if kills > 1:  # a loop as long as it takes
        schedule = replace(setup.config.schedule, rounds=2 * len(victims))
        long = replace(setup.config, schedule=schedule)
        wanted, setup = (replace(make_setup(tmp_path / name), config=long) for name in ("serial", "killed"))
        run_serially(wanted)
    moments = sorted(chosen.sample(range(1, setup.config.schedule.rounds - 1), len(victims)))
    chosen.shuffle(victims)
    boards, open_board = [], board.Board.open

    def watched() -> board.Board:
        boards.append(open_board())
        return boards[-1]

    monkeypatch.setattr(board.Board, "open", staticmethod(watched))

    def kill(line: dict) -> None:
        if not moments or line["round"] < moments[0]:
            return
        del moments[0]
        if (victim := victims.pop()) == "board":
            ray.kill(boards[-1]._actor)
            return
        worker = read_shard(setup.root, line["shards"][0]).row.worker if victim == "generator" else line["worker"]
        with contextlib.suppress(ProcessLookupError):  # one that was killed before, of whose shard this is
            os.kill(int(worker.rpartition(":")[2]), signal.SIGKILL)

    ended = []
    while not setup.is_complete:
        try:
            run_loop(setup, loop_workers(1), progress=kill)
        except PoolError as error:  # after several deaths in one call
            ended.append(str(error))
        assert len(ended) <= kills
    assert not moments
    assert same(setup, wanted)
    assert len(boards) > kills
    assert kills > 1 or not ended
