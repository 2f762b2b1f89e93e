"""Stored trajectories as a user handles them: listed, checked, tidied up, exported; nothing that is needed is lost."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from loops import loop_config, published
from PIL import Image

from pipeline.artifacts import BEGUN, Store
from pipeline.store import main
from stages.data.datasets import DataConfig, ImageData
from stages.data.formats import DataError
from stages.data.sources import WAYS_OUT
from stages.fingerprint import canonical
from stages.lease import lease
from stages.storage import Storage
from stages.training.rounds import run_serially
from stages.training.setup import Setup
from stages.trajectories import dataset
from stages.trajectories.dataset import TrajectoryDataset
from stages.trajectories.shards import shard_key

RECIPE = {"data": canonical(DataConfig(name="digits", train_images=96)), "schedule": {"rounds": 6}}


@pytest.fixture
def setup(undisturbed: dict[int, Setup], make_setup: Callable[..., Setup], tmp_path: Path) -> Setup:
    """A finished run with its receipts, in a root of its own."""
    root, wanted = tmp_path / "root", undisturbed[1]
    setup = make_setup(root)
    keys = {shard_key(shard) for line in wanted.journal.lines() for shard in line["shards"]}
    keys |= {each.key for place in ("runs/run", "ledger/run") for each in wanted.root.entries(place)}
    for key in keys:  # and nothing of other runs below that root
        setup.root.put(key, wanted.root.get(key))
    for name in ("mine", "spare"):
        Store(root).make("pgd", name, lambda directory: _receipt(directory), config=None, inputs={})
    _finish(setup, ["pgd/mine"])
    return setup


def _receipt(directory: Path) -> dict:
    (directory / "verdict.npz").write_bytes(b"adversaries")
    return {}


def _finish(setup: Setup, artifacts: list[str]) -> None:
    robust = {"value": 0.5, "images": 8}
    for name, content in {
        "recipe.json": {"preset": "digits", "recipe": RECIPE},
        "results.json": {"artifacts": artifacts, "robust_accuracy": robust},
    }.items():
        setup.run.put(name, json.dumps(content).encode())


def store(setup: Setup, *arguments: str) -> int:
    return main([str(setup.root), *arguments])


def objects(setup: Setup) -> set[str]:
    return {each.key for each in setup.root.entries() if each.key != "runs/run/lock"}


def test_what_is_there_is_listed(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    assert store(setup, "ls") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "runs/run" in line]
    count = len(setup.ledger.rows())
    assert "digits, 6 of 6 rounds" in line
    assert f"{count} shards, {sum(row.n for row in setup.ledger.rows())} segments" in line
    assert "50.0 % of 8 images remain robust" in line


def test_a_sound_root_is_verified(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    assert store(setup, "verify") == 0
    assert "as they were written" in capsys.readouterr().out


DAMAGED = {
    "shard": "trajectories/",
    "receipt": "store/pgd/mine/verdict.npz",
    "manifest": "store/pgd/mine/manifest.json",
    "checkpoint": "runs/run/train/state-",
    "best weights": "runs/run/train/best/",
    "metrics": "runs/run/metrics/",
    "version": "runs/run/versions/3",
    "ledger": "ledger/run/",
}


@pytest.mark.parametrize("gone", [False, True], ids=["altered", "gone"])
@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_or_missing_is_named(
    case: str, gone: bool, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    key = min(key for key in objects(setup) if key.startswith(DAMAGED[case]))
    if gone:
        setup.root.delete([key])
    else:
        content = setup.root.get(key)
        setup.root.put(key, content[:9] + bytes([content[9] ^ 1]) + content[10:-5])
    harmless = gone and case in ("manifest", "version", "ledger")  # what was never there, or is an index
    assert store(setup, "verify") == (0 if harmless else 1)
    named = {"shard": key.rpartition("/")[2].partition(".")[0], "receipt": "pgd/mine", "manifest": "pgd/mine"}
    if gone:
        named["metrics"] = "runs/run/metrics has no line of round 0, which was trained: remove"
    assert harmless or named.get(case, key) in capsys.readouterr().err


def test_a_ledger_is_written_again_from_its_shards(setup: Setup) -> None:
    rows = setup.ledger.rows()
    damaged = min(key for key in objects(setup) if key.startswith("ledger/"))
    setup.root.put(damaged, b"PAR1")
    assert store(setup, "rebuild") == 0
    assert setup.ledger.rows() == rows
    assert store(setup, "verify") == 0


@pytest.mark.parametrize("lost", ["trajectories/", "runs/run/metrics/"])
def test_where_something_is_lost_no_ledger_is_rebuilt_and_nothing_that_it_named_is_pruned(
    lost: str, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = setup.ledger.rows()
    setup.root.delete([min(key for key in objects(setup) if key.startswith(lost))])
    before = {key for key in objects(setup) if not key.startswith("store/pgd/spare")}
    assert store(setup, "rebuild") == 1
    assert setup.ledger.rows() == rows
    assert store(setup, "prune", "--older-hours", "0", "--yes") == (1 if "metrics" in lost else 0)
    assert objects(setup) >= before
    assert "has no line of round 0" in (said := capsys.readouterr().err) or "no such object" in said


def test_hidden_and_foreign_files_are_nobodys(setup: Setup) -> None:
    before, rows = objects(setup), setup.ledger.rows()
    stray = [f"{place}/.DS_Store" for place in ("trajectories", "ledger/run", "runs", "runs/run/versions", "store")]
    stray += ["trajectories/notes.txt", "ledger/run/notes.txt", "runs/run/versions/notes.txt"]
    for key in stray:
        setup.root.put(key, b"")
    for command in (["ls"], ["verify"], ["usage"], ["rebuild"], ["prune"]):
        assert store(setup, *command) == 0
    assert run_serially(setup) == 0
    assert store(setup, "prune", "--older-hours", "0", "--yes") == 0
    assert [key for key in stray if not setup.root.exists(key)] == []
    gone = {key for key in before - objects(setup) if not key.startswith("ledger/")}
    assert gone == {key for key in before if key.startswith("store/pgd/spare")}
    assert setup.ledger.rows() == rows


def test_pruning_deletes_what_nobody_needs_and_no_more(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    before, weights = objects(setup), published(setup)
    setup.root.put(shard_key("0" * 32), b"of a round that was never trained on")
    for name in ("store/ablation/a/manifest.json", "ablations/a/part/train/state-3.pt", "ledger/ablations/a/part/0-2"):
        setup.root.put(name, b"{}")
    for name in ("trials/a/train/state-3.pt", "ledger/trials/a/0-2"):  # which no search names
        setup.root.put(name, b"{}")
    setup.root.put("ablations/b/part/train/state-3.pt", b"to go on from")
    leftovers = objects(setup) - before - {"ablations/b/part/train/state-3.pt"} | {"store/ablation/a/manifest.json"}
    spare = {key for key in before if key.startswith("store/pgd/spare")}
    assert store(setup, "prune", "--yes") == 0
    assert "0 objects of 0 B were deleted; what is younger than 24 hours is kept" in capsys.readouterr().out
    assert objects(setup) >= before | leftovers
    assert store(setup, "prune", "--older-hours", "0") == 0
    assert objects(setup) >= before | leftovers
    assert f"{len(leftovers | spare)} objects" in capsys.readouterr().out
    assert store(setup, "prune", "--older-hours", "0", "--yes") == 0
    assert objects(setup) == (before - spare) | {"ablations/b/part/train/state-3.pt"}
    assert store(setup, "verify") == 0
    assert run_serially(setup) == 0
    assert published(setup) == weights


@pytest.mark.parametrize("finished", [False, True])
def test_what_a_trial_goes_on_from_stays_until_its_search_is_finished(
    finished: bool, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    trial, verdict = "trials/a/train/state-3.pt", "store/verdict/b/manifest.json"
    noted = {"finished": finished, "trials": [{"trial": 0, "folder": "trials/a"}], "artifacts": ["verdict/b"]}
    setup.root.put("searches/s/search.json", json.dumps(noted).encode())
    for name in (trial, verdict):
        setup.root.put(name, b"{}")
    assert store(setup, "prune", "--older-hours", "0", "--yes") == 0
    assert setup.root.exists(trial) is not finished
    assert setup.root.exists(verdict)
    assert store(setup, "ls") == 0
    assert "searches/s" in capsys.readouterr().out
    assert store(setup, "prune", "--older-hours", "0", "--yes", "--drop", "searches/s") == 0
    assert not [key for key in objects(setup) if key.startswith(("trials", "searches", "store/verdict"))]


def test_receipts_stay_while_a_run_has_yet_to_say_which_it_needs(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.run.delete(["results.json"])
    before = objects(setup)
    assert store(setup, "prune", "--older-hours", "0", "--yes") == 0
    assert objects(setup) == before
    assert "since these are not finished: runs/run" in capsys.readouterr().out


def test_receipts_stay_while_an_evaluation_that_has_results_is_extended(setup: Setup) -> None:
    setup.run.put(BEGUN, b"")
    before = objects(setup)
    assert store(setup, "prune", "--older-hours", "0", "--yes") == 0
    assert objects(setup) == before


@pytest.mark.parametrize("found", [b'{"finished": false, "tri', None], ids=["torn", "gone"])
def test_a_search_that_cannot_say_which_trials_are_its_own_keeps_them_all(found: bytes | None, setup: Setup) -> None:
    setup.root.put("searches/s/recipe.json", b"{}")
    if found:
        setup.root.put("searches/s/search.json", found)
    setup.root.put("trials/a/train/state-3.pt", b"to go on from")
    assert store(setup, "prune", "--older-hours", "0", "--yes") == 0
    assert setup.root.exists("trials/a/train/state-3.pt")


def test_a_run_from_whose_shards_another_was_begun_is_not_dropped_alone(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    borrowed = {"preset": "digits", "recipe": {**RECIPE, "train": {"from_cache": "run"}}}
    setup.root.put("runs/borrower/recipe.json", json.dumps(borrowed).encode())
    before = objects(setup)
    with pytest.raises(SystemExit, match="2"):
        store(setup, "prune", "--drop", "runs/run", "--yes", "--older-hours", "0")
    assert "--drop runs/run: runs/borrower was begun from its shards" in capsys.readouterr().err
    assert objects(setup) == before
    assert store(setup, "prune", "--drop", "runs/run", "runs/borrower", "--yes", "--older-hours", "0") == 0
    assert not [key for key in objects(setup) if key.startswith("runs/")]


def test_of_a_dropped_run_stays_what_another_needs(setup: Setup) -> None:
    second = replace(setup, name="runs/second", config=replace(loop_config(1), seed=1))
    run_serially(second)
    shared = replace(setup, name="runs/shared")
    run_serially(shared)
    for each in (second, shared):
        _finish(each, ["pgd/mine"])
    own = {shard for line in second.journal.lines() for shard in line["shards"]}
    assert store(setup, "prune", "--drop", "runs/run", "runs/second", "--yes", "--older-hours", "0") == 0
    left = objects(setup)
    assert not any(key.startswith(("runs/run/", "runs/second/", "ledger/run/", "ledger/second/")) for key in left)
    assert {shard_key(shard) for line in shared.journal.lines() for shard in line["shards"]} <= left
    assert not {shard_key(shard) for shard in own} & left
    assert store(setup, "verify") == 0


@pytest.mark.parametrize("hours", ["-1", "1e12", "nan"])
def test_an_age_that_makes_no_sense_is_refused(hours: str, setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        store(setup, "prune", "--older-hours", hours)
    assert "--older-hours" in capsys.readouterr().err


def test_nothing_is_pruned_while_a_run_is_at_work(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    before = objects(setup)
    with lease(setup.run, "lock"), pytest.raises(SystemExit, match="2"):
        store(setup, "prune", "--older-hours", "0", "--yes")
    assert "what a run at work needs is not known" in capsys.readouterr().err
    assert objects(setup) == before


@pytest.mark.parametrize("name", ["all.zarr", "all.npz", "pictures"])
def test_an_export_holds_what_the_data_set_gives(name: str, setup: Setup, tmp_path: Path) -> None:
    place = tmp_path / name
    assert store(setup, "export", "run", str(place), "--last-round", "3", "--classes", "1", "2", "3") == 0
    data = TrajectoryDataset(setup.root, run="run", rounds=range(4), classes=(1, 2, 3))
    assert 0 < len(data) < len(TrajectoryDataset(setup.root, run="run"))
    items = data.__getitems__(range(len(data)))
    columns = {
        "label": [each.label for each in items],
        "row": [each.row for each in items],
        **{each: data.shards[each].to_numpy()[data.shard_of(range(len(data)))].tolist() for each in ("round", "unit")},
    }
    if name == "pictures":
        table = pq.read_table(place / "table.parquet")
        found = {each: table[each].to_pylist() for each in columns}
        for number, item in enumerate(items):
            for kind, image in (("image", item.image), ("state", item.state)):
                with Image.open(place / kind / table["file"][number].as_py()) as picture:
                    assert np.abs(np.asarray(picture) / 255 - image[0].numpy()).max() <= 0.5 / 255 + 1e-6
    else:
        arrays = zarr.open_group(place, mode="r") if name == "all.zarr" else np.load(place)
        found = {each: np.asarray(arrays[each]).tolist() for each in columns}
        assert (np.asarray(arrays["state"]) == np.stack([each.state.numpy() for each in items])).all()
        assert (np.asarray(arrays["image"]) == np.stack([each.image.numpy() for each in items])).all()
    assert found == columns


EXPORTS = {
    "another run": (["other", "new"], "no run 'other' has trained on anything"),
    "no run at all": (["..", "new"], "the run's name '..' must be a plain name"),
    "a state that there is not": (["run", "new", "--state", "3"], "these segments have states 0 to 2"),
    "all states as pictures": (["run", "new", "--state", "all"], "ask for one state"),
    "nothing that fits": (["run", "new.npz", "--classes", "11"], "no segment fits"),
    "a place that is taken": (["run", "taken"], "is there already"),
}


@pytest.mark.parametrize("case", EXPORTS)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    case: str, setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run, place, *flags), message = EXPORTS[case]
    (tmp_path / "taken").mkdir()
    before = set(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="2"):
        store(setup, "export", run, str(tmp_path / place), *flags)
    assert message in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def test_an_export_without_its_images_names_its_own_flags(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(config: DataConfig) -> ImageData:
        raise DataError(f"nothing in {config.root}. {WAYS_OUT}")

    monkeypatch.setattr(dataset, "load_data", absent)
    with pytest.raises(SystemExit, match="2"):
        store(setup, "export", "run", str(tmp_path / "new"), "--data-root", "nowhere", "--data-download")
    said = capsys.readouterr().err
    assert "nothing in nowhere. Pass --data-download to fetch it, or name the folder" in said
    assert "left it by --data-root or the environment" in said


def test_a_root_with_nothing_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "nowhere"), "ls"])
    assert "nothing lies below" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_a_bucket_is_tidied_up_like_a_directory(setup: Setup, s3_bucket: str, tmp_path: Path) -> None:
    there = Storage.at(f"{s3_bucket}/{tmp_path.name}")
    for key in objects(setup):
        there.put(key, setup.root.get(key))
    there.put(shard_key("0" * 32), b"of a round that was never trained on")
    assert main([str(there), "prune", "--older-hours", "0", "--yes"]) == 0
    assert main([str(there), "verify"]) == 0
    assert {each.key for each in there.entries()} == {
        key for key in objects(setup) if not key.startswith("store/pgd/spare")
    }


def test_the_detector_of_the_readme_is_trained(setup: Setup) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text().partition("## Read the trajectories")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    code, replaced = re.subn(r'"rap-runs", run="[^"]*", rounds=[^)]*\)', f'"{setup.root}", run="run"', code)
    assert replaced == 1
    names: dict = {}
    exec(code, names)
    assert len(names["data"]) == sum(row.n for row in setup.ledger.rows())
    assert torch.isfinite(names["loss"])
    assert names["detector"][1].weight.grad.abs().sum() > 0
