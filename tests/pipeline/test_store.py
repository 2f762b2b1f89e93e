"""Stored trajectories as a user handles them: listed, checked, written again, exported."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from PIL import Image
from stored_runs import objects, store

from pipeline.store import main
from stages.data.datasets import DataConfig, ImageData
from stages.data.formats import DataError
from stages.data.sources import WAYS_OUT
from stages.training.rounds import run_serially
from stages.training.setup import Setup
from stages.trajectories import dataset
from stages.trajectories.dataset import TrajectoryDataset


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
