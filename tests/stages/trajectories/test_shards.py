import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from examples import attacked, random_segments
from hypothesis import given, settings
from hypothesis import strategies as st
from independent_reader import read_states
from test_codec import CASES, FREE, L2, LINF, SHAPES

from stages.trajectories import shards
from stages.trajectories.shards import (
    AlteredShardError,
    MissingShardError,
    ShardError,
    TornShardError,
    read_shard,
    seal,
    write_shard,
)


def files_of(path: Path) -> dict[str, Path]:
    return {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << position % 8
    file.write_bytes(content)


@pytest.fixture(params=["Linf", "L2"])
def written(request, tmp_path):
    """A shard with every kind of array, and its seal."""
    made = attacked(request.param, derived=False)
    return tmp_path / "shard", write_shard(tmp_path / "shard", made.segments, provenance={"round": 3})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_read_shard_decodes_to_the_attacked_states(case, tmp_path):
    made = attacked(**case)
    sealed = write_shard(tmp_path / "shard", made.segments, provenance={})
    back = read_shard(tmp_path / "shard", expected=sealed)
    assert torch.equal(back.states(made.clean), made.states)
    assert back.process == made.segments.process
    assert back.shape == made.segments.shape
    assert torch.equal(back.index, made.segments.index)
    assert torch.equal(back.made, made.segments.made)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_reader_that_shares_no_code_gets_the_bits_that_the_model_saw(case, tmp_path):
    made = attacked(**case)
    write_shard(tmp_path / "shard", made.segments, provenance={})
    states = read_states(tmp_path / "shard", made.images.numpy())
    seen = made.segments.process.lattice.to_float(made.states).transpose(0, 1).numpy()
    assert states.dtype == seen.dtype == np.float32
    assert np.array_equal(states.view(np.uint32), seen.view(np.uint32))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 5),
    steps=st.integers(1, 5),
    shape=SHAPES,
    process=st.sampled_from([LINF, FREE, L2]),
    warm=st.booleans(),
)
def test_any_segments_survive_the_disk_for_both_readers(seed, n, steps, shape, process, warm):
    segments = random_segments(seed, n=n, steps=steps, shape=shape, process=process, warm=warm)
    images = np.random.default_rng(seed).integers(100, 150, (n, *shape)).astype(np.uint8)
    states = segments.states(process.lattice.from_bytes(torch.from_numpy(images)))
    with tempfile.TemporaryDirectory() as folder:
        sealed = write_shard(Path(folder) / "shard", segments, provenance={})
        back = read_shard(Path(folder) / "shard", expected=sealed)
        foreign = read_states(Path(folder) / "shard", images)
    assert torch.equal(back.states(process.lattice.from_bytes(torch.from_numpy(images))), states)
    assert np.array_equal(foreign, process.lattice.to_float(states).transpose(0, 1).numpy())


def test_chunks_hold_at_most_256_examples_and_zeros_are_written_too(tmp_path):
    segments = random_segments(1, n=600, steps=2, shape=(1, 3, 3), process=LINF)
    assert segments.signs is not None
    segments.signs[:] = 0
    sealed = write_shard(tmp_path / "shard", segments, provenance={})
    assert {f"signs/c.{chunk}.0.0" for chunk in range(3)} <= files_of(tmp_path / "shard").keys()
    group = zarr.open_group(tmp_path / "shard", mode="r")
    assert {name: array.chunks[0] for name, array in group.arrays()} == dict.fromkeys(
        ["index", "made", "signs", "nonzero"], 256
    )
    back = read_shard(tmp_path / "shard", expected=sealed)
    assert torch.equal(back.index, segments.index)
    assert back.signs is not None
    assert not back.signs.any()


def test_augmentation_comes_back(tmp_path):
    segments = random_segments(1, n=3, steps=2, shape=(1, 3, 3), process=LINF)
    augmentation = torch.tensor([[0, 1, 0], [-4, 4, 1], [2, 0, 1]], dtype=torch.int16)
    object.__setattr__(segments, "augmentation", augmentation)
    sealed = write_shard(tmp_path / "shard", segments, provenance={})
    back = read_shard(tmp_path / "shard", expected=sealed)
    assert back.augmentation is not None
    assert torch.equal(back.augmentation, augmentation)


def test_the_attributes_tell_a_foreign_reader_all_it_needs(tmp_path):
    write_shard(tmp_path / "shard", attacked().segments, provenance={"unit": 7, "parents": ("a", "b")})
    attributes = dict(zarr.open_group(tmp_path / "shard", mode="r").attrs)
    assert attributes["format"] == "rap-trajectories"
    assert attributes["version"] == 1
    assert attributes["shape"] == [3, 5, 3]
    assert (attributes["segments"], attributes["steps"]) == (6, 4)
    assert attributes["start"] == {"stored": False, "hash": "splitmix64", "seed": str(2**63 + 11)}
    assert attributes["provenance"] == {"unit": 7, "parents": ["a", "b"]}
    process = attributes["process"]
    assert {"norm", "denominator", "bound", "step", "project", "noise"} <= process.keys()  # pyright: ignore


def test_the_same_segments_make_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        write_shard(tmp_path / name, attacked(derived=False).segments, provenance={"a": 1})
    first, second = (files_of(tmp_path / name) for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(first[name].read_bytes() == second[name].read_bytes() for name in first)


def test_the_seal_counts_every_byte_and_is_found_again(written):
    path, sealed = written
    assert sealed.bytes == sum(file.stat().st_size for file in files_of(path).values())
    assert seal(path) == sealed


def test_an_existing_shard_is_never_written_over(written):
    path, sealed = written
    with pytest.raises(FileExistsError):
        write_shard(path, attacked().segments, provenance={})
    assert seal(path) == sealed


def test_every_file_and_directory_is_on_the_disk_before_the_seal_is_returned(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync

    def record(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_shard(tmp_path / "shard", attacked().segments, provenance={})
    there = [tmp_path, tmp_path / "shard", *(tmp_path / "shard").rglob("*")]
    assert {path.stat().st_ino for path in there} <= synced


@pytest.mark.parametrize("sealed", [True, False], ids=["against its seal", "without a seal"])
def test_a_flipped_bit_is_named_wherever_it_is(written, sealed):
    path, known = written
    for name, file in files_of(path).items():
        whole = file.read_bytes()
        for position in {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
            flip(file, position)
            with pytest.raises(AlteredShardError, match=rf"shard {path}: {re.escape(name)}: found"):
                read_shard(path, expected=known if sealed else None)
            file.write_bytes(whole)
    assert seal(path) == known


def test_flipped_bits_all_over_the_metadata_are_found_without_a_seal(written):
    path, _ = written
    root = path / "zarr.json"
    whole = root.read_bytes()
    for position in range(0, len(whole), 5):
        flip(root, position)
        with pytest.raises(ShardError, match=re.escape(str(path))):
            seal(path)
        root.write_bytes(whole)


def test_a_truncated_file_is_named(written):
    path, sealed = written
    for name, file in files_of(path).items():
        whole = file.read_bytes()
        for length in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:length])
            with pytest.raises(ShardError, match=re.escape(f"shard {path}: {name}: found")):
                read_shard(path, expected=sealed)
            with pytest.raises(ShardError, match=re.escape(f"shard {path}: {name}: found")):
                seal(path)
        file.write_bytes(whole)


def test_a_deleted_file_is_named_and_never_read_as_zeros(written):
    path, sealed = written
    for name, file in files_of(path).items():
        whole = file.read_bytes()
        file.unlink()
        message = re.escape(f"shard {path}: {name}: found no such file")
        with pytest.raises(TornShardError, match=message):
            read_shard(path, expected=sealed)
        with pytest.raises(TornShardError, match=message):
            seal(path)
        file.write_bytes(whole)


def test_a_deleted_array_is_named(written):
    path, sealed = written
    shutil.rmtree(path / "index")
    with pytest.raises(TornShardError, match=r"index/c.0: found no such file"):
        read_shard(path, expected=sealed)


def test_a_deleted_shard_is_named(written):
    path, sealed = written
    shutil.rmtree(path)
    with pytest.raises(MissingShardError, match=rf"shard {path}: directory: found nothing"):
        read_shard(path, expected=sealed)


def test_another_shard_in_its_place_is_refused(written):
    path, sealed = written
    shutil.rmtree(path)
    write_shard(path, attacked(steps=3).segments, provenance={})
    with pytest.raises(AlteredShardError, match=r"zarr\.json: found sha256"):
        read_shard(path, expected=sealed)


def test_a_shard_of_a_later_format_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "VERSION", 2)
    write_shard(tmp_path / "shard", attacked().segments, provenance={})
    monkeypatch.undo()
    with pytest.raises(ShardError, match=r"version 2; this program reads 'rap-trajectories', version 1"):
        read_shard(tmp_path / "shard", expected=None)


def test_a_zarr_group_that_is_no_shard_is_refused(tmp_path):
    zarr.create_group(tmp_path / "other")
    with pytest.raises(ShardError, match=r"zarr\.json: found KeyError"):
        read_shard(tmp_path / "other", expected=None)


def test_every_chunk_carries_a_checksum_that_foreign_readers_check(written):
    path, _ = written
    for name, file in files_of(path).items():
        if file.name == "zarr.json":
            continue
        codecs = json.loads((file.parent / "zarr.json").read_text())["codecs"]
        assert codecs[-1]["name"] == "crc32c" or codecs[-1]["configuration"]["checksum"], name
        whole = file.read_bytes()
        flip(file, len(whole) // 2)
        with pytest.raises((RuntimeError, ValueError)):
            zarr.open_array(file.parent, mode="r")[...]
        file.write_bytes(whole)
