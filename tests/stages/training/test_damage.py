"""What the messages about damage advise, followed to the letter: it ends with the weights of an undisturbed run."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import after, loop_config, setup_of

from stages.storage import Storage
from stages.training.rounds import run_serially
from stages.training.setup import Setup
from stages.training.versions import VersionMismatchError
from stages.trajectories import shards
from stages.trajectories.ledger import Ledger, LedgerError
from stages.trajectories.shards import AlteredShardError, MissingShardError, ShardError, read_shard, shard_key

CONFIG = loop_config()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The fingerprints of the weights after each round."""
    setup = setup_of(tmp_path_factory.mktemp("undisturbed"), CONFIG)
    run_serially(setup)
    return weights_of(setup)


def weights_of(setup: Setup) -> list[str]:
    return [line["weights"] for line in setup.journal.lines()]


def stopped_run(root: Path, *, keep_versions: bool) -> tuple[Setup, str]:
    """A run of which the last round is to come, and a shard on which that goes on."""
    setup = setup_of(root, CONFIG, keep_versions=keep_versions)
    run_serially(setup, stopped=after(5))
    visits = setup.schedule.visits(5)
    start = setup.journal.resume(setup.learner(), "cpu")
    rows = {row.cohort: row.fingerprint for row in Ledger(setup.root, "run").rows()}
    rows |= {read_shard(setup.root, name).row.cohort: name for line in setup.journal.lines() for name in line["shards"]}
    assert start.round == 4
    parent = next(rows[visit.cohort] for visit in visits if setup.schedule.ages(visit).any())
    return setup, parent


def tear(setup: Setup, key: str) -> bytes:
    """Cut an object in half; returns all of it."""
    content = setup.root.get(key)
    setup.root.put(key, content[: len(content) // 2])
    return content


def test_a_shard_that_is_restored_is_gone_on_from(wanted: list[str], tmp_path: Path):
    setup, parent = stopped_run(tmp_path, keep_versions=False)
    content = tear(setup, shard_key(parent))
    with pytest.raises(AlteredShardError, match=f"{parent}.*Restore the file"):
        run_serially(setup)
    setup.root.put(shard_key(parent), content)
    run_serially(setup)
    assert weights_of(setup) == wanted


@pytest.mark.parametrize("kind", ["torn", "deleted"])
def test_a_shard_whose_weights_are_gone_is_made_again_by_a_run_that_repeats_its_updates(
    kind: str, wanted: list[str], tmp_path: Path
):
    setup, parent = stopped_run(tmp_path, keep_versions=False)
    tear(setup, shard_key(parent))
    if kind == "deleted":
        setup.root.delete([shard_key(parent)])
    with pytest.raises(ShardError, match=rf"{parent}.* or remove {setup.run.location('train')}, and the same command"):
        run_serially(setup)
    shutil.rmtree(setup.run.location("train"))
    assert run_serially(setup) >= 2  # that shard, and what it held up
    assert read_shard(setup.root, parent).row.fingerprint == parent
    assert weights_of(setup) == wanted


def test_a_shard_is_made_again_by_a_run_of_another_name(wanted: list[str], tmp_path: Path):
    setup, parent = stopped_run(tmp_path, keep_versions=False)
    tear(setup, shard_key(parent))
    with pytest.raises(ShardError, match="or start the run anew under another --name, which makes"):
        run_serially(setup)
    other = setup_of(tmp_path, CONFIG, name="other", keep_versions=False)
    run_serially(other)
    assert weights_of(other) == wanted
    run_serially(setup)
    assert weights_of(setup) == wanted


def test_a_shard_of_another_version_is_deleted_and_made_again(
    wanted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(shards, "VERSION", 1)
        setup, _ = stopped_run(tmp_path, keep_versions=False)
    shutil.rmtree(setup.run.location("train"))
    name = setup.journal.lines()[0]["shards"][0]
    with pytest.raises(ShardError, match=rf"{name}.*version 1; this program reads .*or delete it and make it again"):
        run_serially(setup)
    setup.root.delete([shard_key(each) for line in setup.journal.lines() for each in line["shards"]])
    run_serially(setup)
    assert weights_of(setup) == wanted


@pytest.mark.parametrize(
    ("file", "how"), [("0000000-0000001", "the same command"), ("0000002-0000003", "a run that is complete")]
)
def test_a_file_of_the_ledger_is_deleted_and_rebuilt(file: str, how: str, wanted: list[str], tmp_path: Path):
    setup, _ = stopped_run(tmp_path, keep_versions=False)
    if how == "a run that is complete":
        run_serially(setup)
    key = f"ledger/run/{file}.parquet"
    tear(setup, key)
    with pytest.raises(LedgerError, match=f"{file}.parquet of the ledger is damaged"):
        setup.ledger.rows()
    setup.root.delete([key])
    run_serially(setup)
    assert [row.fingerprint for row in setup.ledger.rows()] == [
        name for line in setup.journal.lines() for name in line["shards"]
    ]
    assert len(setup.ledger.rows()) == 12
    assert weights_of(setup) == wanted


TRAIN_FILES: dict[str, Callable[[Setup], str]] = {
    "the checkpoint": lambda setup: "train/checkpoint.json",
    "its state": lambda setup: next(f"train/{name}" for name in setup.run.names("train") if name.startswith("state")),
    "the best weights": lambda setup: f"train/best/{setup.run.names('train/best')[0]}",
}


@pytest.mark.parametrize(("name", "done"), list(zip(TRAIN_FILES, (5, 5, 6), strict=True)))
def test_a_training_whose_files_are_damaged_is_repeated_once_they_are_removed(
    done: int, name: str, wanted: list[str], tmp_path: Path
):
    setup = setup_of(tmp_path, CONFIG, keep_versions=False)
    run_serially(setup, stopped=after(done))
    tear(replace(setup, root=setup.run), TRAIN_FILES[name](setup))

    def ask() -> None:
        run_serially(setup)
        setup.journal.best_weights()

    with pytest.raises(VersionMismatchError, match=f"is damaged: remove {setup.run.location('train')}, and the same"):
        ask()
    shutil.rmtree(setup.run.location("train"))
    ask()
    assert weights_of(setup) == wanted
    assert len(setup.ledger.rows()) == 12


@pytest.mark.parametrize("advice", ["restored", "another name"])
def test_a_kept_version_that_is_damaged_is_restored_or_another_run_made(advice: str, wanted: list[str], tmp_path: Path):
    setup, parent = stopped_run(tmp_path, keep_versions=True)
    setup.root.delete([shard_key(parent)])
    run, version = Storage.at(setup.run.location("versions")), read_version(setup, parent)
    content = run.get(f"{version}.safetensors")
    run.put(f"{version}.safetensors", content[:-9] + bytes(9))
    with pytest.raises(VersionMismatchError, match="Restore it, or start anew under another --name"):
        run_serially(setup)
    if advice == "restored":
        run.put(f"{version}.safetensors", content)
    else:
        setup = setup_of(tmp_path, CONFIG, name="other")
    run_serially(setup)
    assert weights_of(setup) == wanted


def read_version(setup: Setup, shard: str) -> int:
    return next(line["version"] for line in setup.journal.lines() if shard in line["shards"])


@pytest.mark.parametrize("kept", ["with its ledger", "without its ledger"])
def test_a_lost_shard_whose_weights_are_kept_needs_no_advice(
    kept: str, wanted: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    setup, parent = stopped_run(tmp_path, keep_versions=True)
    setup.root.delete([shard_key(parent)])
    if kept == "without its ledger":
        setup.ledger.clear()
    run_serially(setup)
    assert weights_of(setup) == wanted
    assert len(setup.ledger.rows()) == 12
    assert caplog.text.count("made again") == caplog.text.count(f"{parent}.zarr.zip: found no such object") == 1
    with pytest.raises(MissingShardError, match="no such object"):
        read_shard(setup.root, "0" * 32)
