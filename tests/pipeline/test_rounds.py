"""The first test of the project: however the loop is run, it publishes the same bytes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from loops import ROUNDS, loop_workers, published, trained_lines

from pipeline.rounds import run_loop
from stages.rap.attack import AttackProcess
from stages.training.rounds import Setup
from stages.trajectories.cache import TrajectoryCache
from stages.trajectories.shards import ShardError

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("generators", [1, 2])
@pytest.mark.parametrize("overlap", [0, 1])
def test_the_loop_on_ray_publishes_the_bytes_of_the_serial_loop(
    overlap: int,
    generators: int,
    ray_session: object,
    make_setup: Callable[..., Setup],
    undisturbed: dict[int, Setup],
    tmp_path: Path,
) -> None:
    setup = make_setup(tmp_path, overlap)
    run_loop(setup, loop_workers(generators), progress=lambda line: None)
    assert set(published(setup)) == {str(number) for number in range(ROUNDS + 1)}
    assert published(setup) == published(undisturbed[overlap])
    assert trained_lines(setup) == trained_lines(undisturbed[overlap])
    assert setup.journal.best.read_bytes() == undisturbed[overlap].journal.best.read_bytes()


def test_overlap_changes_what_is_attacked(undisturbed: dict[int, Setup]) -> None:
    assert published(undisturbed[0])["1"] == published(undisturbed[1])["1"]  # both attack v_0 in round 0
    assert published(undisturbed[0])["2"] != published(undisturbed[1])["2"]


@pytest.mark.parametrize("victim", ["generator", "train worker"])
def test_a_killed_worker_changes_nothing(
    victim: str,
    ray_session: object,
    make_setup: Callable[..., Setup],
    undisturbed: dict[int, Setup],
    tmp_path: Path,
) -> None:
    setup = make_setup(tmp_path)
    killed = []

    def kill_once(line: dict) -> None:
        if killed or line["round"] < 2:
            return
        row = TrajectoryCache(setup.root).ledger.get(line["shards"][0])
        assert row is not None
        worker = row.worker if victim == "generator" else line["worker"]
        killed.append(int(worker.rpartition(":")[2]))
        os.kill(killed[0], signal.SIGKILL)

    run_loop(setup, loop_workers(1), progress=kill_once)
    assert killed
    assert published(setup) == published(undisturbed[1])
    assert trained_lines(setup) == trained_lines(undisturbed[1])
    cache = TrajectoryCache(setup.root)
    for row in cache.ledger.rows():
        assert cache.read(row.fingerprint).process == AttackProcess(**vars(setup.config.attack))


def test_a_damaged_shard_stops_both_sides_and_is_named(
    ray_session: object, make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    """The shard of the first round is read again three rounds later, as the parent of a segment that goes on."""
    setup = make_setup(tmp_path)
    damaged = []

    def flip_a_bit(line: dict) -> None:
        if not damaged:
            damaged.append(line["shards"][0])
            file = next(TrajectoryCache(tmp_path).path(damaged[0]).glob("signs/c*"))
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)

    with pytest.raises(ShardError, match="signs"):
        run_loop(setup, loop_workers(1), progress=flip_a_bit)
    assert damaged
