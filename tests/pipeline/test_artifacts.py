"""An artifact is there whole, or not at all."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from unchecked import unchecked_types

from pipeline.artifacts import ArtifactError, Store, manifest_at, usable_root


@dataclass(frozen=True)
class Config:
    rate: float = 0.5


def write(directory: Path) -> dict:
    (directory / "weights.bin").write_bytes(b"weights")
    (directory / "more").mkdir()
    (directory / "more" / "notes.txt").write_text("notes")
    return {"accuracy": 0.9}


def make(store: Store) -> Path:
    return Path(store.make("thing", "abc", write, config=Config(), inputs={"data": "def"}).path)


def test_an_artifact_comes_back_with_its_manifest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get("thing", "abc") is None
    path = make(store)
    found = store.get("thing", "abc")
    assert found is not None
    assert found.path == str(path)
    assert found.read("more/notes.txt") == b"notes"
    assert found.metrics == {"accuracy": 0.9}
    assert found.manifest["config"] == {"rate": 0.5}
    assert set(found.manifest["outputs"]) == {"weights.bin", "more/notes.txt"}
    assert {"commit", "packages", "device", "threads", "seconds"} <= found.manifest["provenance"].keys()


def test_it_lies_in_a_bucket_as_in_a_directory(s3_bucket: str) -> None:
    path = make_at(f"{s3_bucket}/artifacts")
    assert path == f"{s3_bucket}/artifacts/store/thing/abc"
    assert manifest_at(path)["outputs"].keys() == {"weights.bin", "more/notes.txt"}
    found = Store(f"{s3_bucket}/artifacts").get("thing", "abc")
    assert found is not None
    assert found.read("weights.bin") == b"weights"


def make_at(root: str) -> str:
    return Store(root).make("thing", "abc", write, config=Config(), inputs={}).path


def test_the_first_of_two_writers_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def late(directory: Path) -> dict:
        make(store)  # by another process, meanwhile
        (directory / "weights.bin").write_bytes(b"other weights")
        return {"accuracy": 0.1}

    assert store.make("thing", "abc", late, config=Config(), inputs={}).metrics == {"accuracy": 0.9}
    assert (tmp_path / "store/thing/abc/weights.bin").read_bytes() == b"weights"


def test_an_artifact_is_made_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make(store)

    def again(directory: Path) -> dict:
        raise AssertionError("made twice")

    assert store.make("thing", "abc", again, config=Config(), inputs={}).metrics == {"accuracy": 0.9}


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(directory: Path) -> dict:
        (directory / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.make("thing", "abc", fail, config=Config(), inputs={})
    assert store.get("thing", "abc") is None
    assert not (tmp_path / "store").exists()


DAMAGE: dict[str, tuple[str, bytes | None]] = {
    "an altered file": ("weights.bin", b"weighty"),
    "a torn file": ("weights.bin", b"weig"),
    "an empty file": ("more/notes.txt", b""),
    "a missing file": ("more/notes.txt", None),
    "a torn manifest": ("manifest.json", b'{"name": "thi'),
    "an empty manifest": ("manifest.json", b""),
    "another manifest": ("manifest.json", b'{"name": "thing/abc"}'),
    "a list for a manifest": ("manifest.json", b"[]"),
    "bytes for a manifest": ("manifest.json", b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_is_named_and_made_anew_as_its_message_says(damage: str, tmp_path: Path) -> None:
    path = make(Store(tmp_path))
    whole = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"}
    name, content = DAMAGE[damage]
    (path / name).unlink() if content is None else (path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name) as named:
        make(Store(tmp_path))
    advice = re.search(r"Remove (\S+) and run the same command again to make it anew$", str(named.value))
    assert advice is not None
    shutil.rmtree(advice[1])
    assert make(Store(tmp_path)) == path
    assert {file: file.read_bytes() for file in whole} == whole
    found = Store(tmp_path).get("thing", "abc")
    assert found is not None
    assert found.metrics == {"accuracy": 0.9}


def test_the_manifest_is_json_that_others_can_read(tmp_path: Path) -> None:
    manifest = json.loads((make(Store(tmp_path)) / "manifest.json").read_text())
    assert manifest["name"] == "thing/abc"


def test_a_root_is_refused_in_the_copy_in_which_a_job_runs(tmp_path, monkeypatch):
    copied = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copied.mkdir(parents=True)
    monkeypatch.chdir(copied)
    for inside in ("rap-runs", copied / "rap-runs", copied / ".." / "rap-runs"):
        with pytest.raises(ValueError, match=r"--root .*rap-runs lies in the copy .*: give an absolute path"):
            usable_root(inside)
    (copied / "shared").symlink_to(tmp_path)
    assert usable_root("shared/root").local() == Path("shared/root").absolute()
    assert usable_root(tmp_path / "root").local() == tmp_path / "root"


@pytest.mark.parametrize("named", ["", " ", None, 3, b"root"])
def test_a_root_without_a_name_is_refused(named):
    with unchecked_types(), pytest.raises(ValueError, match=rf"--root is {re.escape(repr(named))}: name a directory"):
        usable_root(named)


def test_a_root_is_called_by_the_name_that_its_caller_has_for_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^root .*is a file; name a directory"):
        usable_root(tmp_path / "file" / "root", "root")


def test_a_figure_that_was_changed_in_a_manifest_is_not_believed(tmp_path: Path) -> None:
    manifest = make(Store(tmp_path)) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"accuracy": 0.9', '"accuracy": 0.99'))
    with pytest.raises(ArtifactError, match=r"manifest\.json: found .*its own sha256"):
        Store(tmp_path).get("thing", "abc")
