"""The first test of the project: however the loop is run, it publishes the same bytes."""

import contextlib
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import psutil
import pytest
import ray
from commands import started_apart
from loops import ROUNDS, SmallDisk, longer, loop_workers, published, shards_of, trained_lines
from s3_faults import FaultyS3

from cluster import board
from cluster.tasks import PoolError
from pipeline.defend.loop import run_loop
from pipeline.exits import conduct
from stages.storage_errors import StorageError
from stages.training.rounds import run_serially
from stages.training.setup import Setup
from stages.trajectories.shards import read_shard, shard_key

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


def run_on_ray(setup: Setup, generators: int = 1) -> int:
    return run_loop(setup, loop_workers(generators), progress=lambda line: None)


def process_of(worker: str) -> int:
    """The number of the process that lines of metrics and shards name."""
    return int(worker.rpartition(":")[2])


def train_workers() -> list[int]:
    """The processes of the train workers that this process has below it."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "".join(each.cmdline()[:1]).startswith("ray::RayTrainWorker"):
                found.append(each.pid)
    return found


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


def test_a_disk_that_gets_full_is_named_and_with_room_again_the_same_call_ends_in_the_same_weights(
    kills: int,
    ray_session: object,
    make_setup: Callable[..., Setup],
    undisturbed: dict[int, Setup],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup, chosen = make_setup(tmp_path), random.Random(4)
    written = sum(each.bytes for each in undisturbed[1].root.entries())
    for room in sorted(int(chosen.uniform(0, 0.9) * written) for _ in range(kills)):
        full = replace(setup, root=SmallDisk(setup.root.root, room=room))
        assert conduct(lambda say, full=full: str(run_on_ray(full)), root=str(tmp_path)) == 1
        assert capsys.readouterr().err == (
            f"error: the disk of {tmp_path} is full: free some space, or copy the folder to a larger one and name that "
            "with --root; nothing committed is lost, and the same command resumes from here\n"
        )
        assert not setup.is_complete
    run_on_ray(setup)
    assert same(setup, undisturbed[1])


def test_a_loop_goes_on_from_its_last_checkpoint_and_lost_shards_are_made_again_from_kept_weights_else_named(
    ray_session: object,
    make_setup: Callable[..., Setup],
    undisturbed: dict[int, Setup],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    setup, lost = make_setup(tmp_path / "kept"), replace(make_setup(tmp_path / "lost"), keep_versions=False)

    def interrupt(line: dict) -> None:
        if line["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_loop(setup, loop_workers(1), progress=interrupt)
    assert not setup.is_complete
    trained = {name for line in setup.journal.lines()[: setup.journal.checkpointed] for name in line["shards"]}
    torn, absent = [row for row in undisturbed[1].ledger.rows() if row.round == ROUNDS - 1]
    assert {torn.parent, absent.parent} <= trained
    altered = bytearray(setup.root.get(shard_key(torn.parent)))
    altered[len(altered) // 2] ^= 1
    setup.root.put(shard_key(torn.parent), bytes(altered))
    setup.root.put(shard_key(torn.fingerprint), undisturbed[1].root.get(shard_key(torn.fingerprint))[:-1])
    setup.root.delete([shard_key(absent.fingerprint), shard_key(absent.parent)])
    shutil.copytree(tmp_path / "kept", tmp_path / "lost", ignore=shutil.ignore_patterns("versions"))
    assert conduct(lambda say: str(run_on_ray(lost)), root=str(lost.root)) == 1
    error = capsys.readouterr().err
    train = lost.run.location("train")
    assert re.fullmatch(rf"error: shard \S+({torn.parent}|{absent.parent})\S+: .* or remove {train}, and .*\n", error)
    setup.ledger.clear()  # so that it, too, asks for what is lost
    before = len(setup.root.names("trajectories"))
    made = run_on_ray(setup, generators=2)
    assert same(setup, undisturbed[1])
    assert made <= len(shards_of(setup)) - before  # none of those that were there but the torn one
    for row in (torn.parent, absent.parent, torn.fingerprint):
        assert re.search(rf"made again: shard \S+{row}", caplog.text)


@pytest.mark.parametrize("trainers", [1, 2])
def test_killed_workers_change_nothing(
    trainers: int,
    kills: int,
    ray_session: object,
    make_setup: Callable[..., Setup],
    undisturbed: dict[int, Setup],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two train workers are compared with two, whose sums of gradients are rounded in another way than one's."""
    chosen = random.Random(0)
    either = ["generator", "train worker", "board"] if trainers == 1 or kills > 1 else []  # once, one worker is enough
    victims = [*either, *["other train worker"] * (trainers - 1)] * kills
    lost = victims.count("board")
    wanted, setup = undisturbed[1], make_setup(tmp_path / "killed")
    if kills > 1 or trainers > 1:
        rounds = ROUNDS if kills == 1 else 2 * len(victims)  # a loop as long as it takes
        wanted, setup = (longer(make_setup(tmp_path / name), rounds, trainers) for name in ("wanted", "killed"))
        run_serially(wanted) if trainers == 1 else run_on_ray(wanted)
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
        victim, first = victims.pop(), process_of(line["worker"])
        if victim == "board":
            ray.kill(boards[-1]._actor)
            return
        killed = {
            "generator": lambda: process_of(read_shard(setup.root, line["shards"][0]).row.worker),
            "train worker": lambda: first,
            "other train worker": lambda: next((each for each in train_workers() if each != first), first),
        }
        with contextlib.suppress(ProcessLookupError):  # one that was killed before, of whose shard this is
            os.kill(killed[victim](), signal.SIGKILL)

    ended = []
    while not setup.is_complete:
        try:
            run_loop(setup, loop_workers(1), progress=kill)
        except PoolError as error:  # after several deaths in one call
            ended.append(str(error))
        assert len(ended) <= kills
    assert not moments
    assert same(setup, wanted)
    assert len(boards) > lost
    assert kills > 1 or not ended


def test_a_loop_whose_driver_is_killed_or_stopped_goes_on_with_the_same_command(
    kills: int, ray_session: object, make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    chosen, ends = random.Random(5), [signal.SIGKILL, signal.SIGTERM] * kills
    chosen.shuffle(ends)
    rounds = ROUNDS * len(ends)
    wanted, setup = (longer(make_setup(tmp_path / name), rounds) for name in ("wanted", "ended"))
    run_serially(wanted)
    for end in ends:
        with started_apart(Path(__file__).with_name("ended_loops.py"), setup.root.root, rounds) as process:
            lines = list(islice(process.stdout or (), chosen.randint(1, ROUNDS // 2)))
            process.send_signal(end)
            said, _ = process.communicate()
        assert lines, "it ended before"
        assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143}[end]
        assert ("the same command resumes" in said) == (end == signal.SIGTERM)
        assert not setup.is_complete
    run_on_ray(setup)
    assert same(setup, wanted)
