"""The order in which a shard becomes committed, and what a kill at any moment of it leaves."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from generated_units import files_below, make, process_of, unit_of

from stages.trajectories.cache import TrajectoryCache
from stages.trajectories.shards import AlteredShardError, MissingShardError, ShardError, TornShardError

# where the writer dies: half of the files written, all written, renamed, row written, row linked
UNCOMMITTED = ["shards.write_files", "cache.read_shard", "cache.sync_directory", "ledger.os.link"]
MOMENTS = [*UNCOMMITTED, "ledger.sync_directory"]
NAME = unit_of().fingerprint


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    make(unit_of(), root)
    return root


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A root for each moment at which a writer was killed."""
    root = tmp_path_factory.mktemp("killed")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[2])])}
    command = [sys.executable, str(here / "killed_writers.py"), str(root), *MOMENTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [word for moment in MOMENTS for word in (moment, "9")]
    return root


def copied(root: Path, moment: str, to: Path) -> Path:
    shutil.copytree(root / moment, to / moment)
    return to / moment


@pytest.mark.parametrize("moment", UNCOMMITTED)
def test_a_killed_writer_leaves_no_shard(moment, killed, tmp_path):
    cache = TrajectoryCache(copied(killed, moment, tmp_path))
    assert NAME not in cache
    assert cache.ledger.rows() == []
    with pytest.raises(LookupError, match="only committed shards are read"):
        cache.read(NAME)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_next_writer_commits_the_same_bytes_after_a_kill(moment, killed, undisturbed, tmp_path):
    root = copied(killed, moment, tmp_path)
    row = make(unit_of(), root)
    assert files_below(TrajectoryCache(root).path(NAME)) == files_below(TrajectoryCache(undisturbed).path(NAME))
    reference = TrajectoryCache(undisturbed).ledger.get(NAME)
    assert reference is not None
    changing = {"seconds": 0.0, "worker": "", "created": ""}
    assert replace(row, **changing) == replace(reference, **changing)
    assert len(TrajectoryCache(root).read(NAME)) == 12


def test_a_row_that_was_linked_before_the_kill_is_a_commit(killed, tmp_path):
    cache = TrajectoryCache(copied(killed, "ledger.sync_directory", tmp_path))
    assert NAME in cache
    assert len(cache.read(NAME)) == 12


@pytest.fixture
def orphan(undisturbed, tmp_path):
    """A whole shard without a row."""
    shutil.copytree(undisturbed / "store", tmp_path / "store")
    return tmp_path


def test_a_whole_shard_without_a_row_is_kept(orphan):
    path = TrajectoryCache(orphan).path(NAME)
    inode = path.stat().st_ino
    make(unit_of(), orphan)
    assert path.stat().st_ino == inode
    assert NAME in TrajectoryCache(orphan)


@pytest.mark.parametrize("damage", ["altered", "truncated", "file deleted", "emptied"])
def test_a_damaged_shard_without_a_row_is_replaced(damage, orphan, undisturbed):
    path = TrajectoryCache(orphan).path(NAME)
    file = path / "signs/c.0.0.0"
    if damage == "altered":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:9])
    elif damage == "file deleted":
        file.unlink()
    else:
        shutil.rmtree(path)
        path.mkdir()
    make(unit_of(), orphan)
    assert files_below(path) == files_below(TrajectoryCache(undisturbed).path(NAME))
    assert len(TrajectoryCache(orphan).read(NAME)) == 12


def test_a_committed_shard_is_never_replaced_by_other_bytes_of_the_same_name(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "root")
    cache = TrajectoryCache(tmp_path / "root")
    row = cache.ledger.get(NAME)
    assert row is not None
    other = unit_of(process_of(start="gaussian"))
    make(other, tmp_path / "other")
    late = TrajectoryCache(tmp_path / "other").read(other.fingerprint)  # as another type of CPU would have made it
    before = files_below(cache.path(NAME))
    assert cache.commit(late, replace(row, worker="late")) == row
    assert files_below(cache.path(NAME)) == before
    assert [path.name for path in cache.directory.iterdir()] == [NAME]


def test_a_comparison_that_fails_leaves_nothing(undisturbed, tmp_path):
    segments = TrajectoryCache(undisturbed).read(NAME)
    row = TrajectoryCache(undisturbed).ledger.get(NAME)
    assert row is not None
    cache = TrajectoryCache(tmp_path)

    def refuse(read_back: object) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        cache.commit(segments, row, compare=refuse)
    assert list(cache.directory.iterdir()) == []
    assert NAME not in cache


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "file deleted", "shard deleted", "exchanged"])
def test_a_damaged_committed_shard_is_named_when_it_is_read(damage, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "root")
    cache = TrajectoryCache(tmp_path / "root")
    path = cache.path(NAME)
    file = path / "signs/c.0.0.0"
    content = file.read_bytes()
    expected: type[ShardError] = TornShardError
    if damage == "flipped bit":
        file.write_bytes(content[:20] + bytes([content[20] ^ 4]) + content[21:])
        expected = AlteredShardError
    elif damage == "truncated":
        file.write_bytes(content[:-3])
    elif damage == "file deleted":
        file.unlink()
    elif damage == "shard deleted":
        shutil.rmtree(path)
        expected = MissingShardError
    else:
        other = unit_of(steps=2)
        make(other, tmp_path / "root")
        shutil.rmtree(path)
        cache.path(other.fingerprint).rename(path)
        expected = AlteredShardError
    with pytest.raises(expected, match=NAME):
        cache.read(NAME)


def test_a_row_that_says_something_else_than_its_shard_is_named(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "root")
    cache = TrajectoryCache(tmp_path / "root")
    row = cache.ledger.get(NAME)
    assert row is not None
    cache.ledger.remove([NAME])
    cache.ledger.add(replace(row, n=11))
    with pytest.raises(ShardError, match=r"holds 12 segments of 6 steps, but its row in the ledger says 11 of 6"):
        cache.read(NAME)
