import math
import re
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from examples import attacked, random_segments, row_of
from hypothesis import given, settings
from hypothesis import strategies as st
from independent_reader import read_states
from test_codec import CASES, FREE, L2, LINF, SHAPES
from zarr.storage import ZipStore

from stages.storage import Storage
from stages.trajectories import shards
from stages.trajectories.shards import (
    AlteredShardError,
    LedgerRow,
    MissingShardError,
    Shard,
    ShardError,
    pack_shard,
    read_shard,
    shard_key,
    unpack_shard,
    write_shard,
)


def packed(segments) -> bytes:
    return pack_shard(Shard(row_of(segments), segments))


def flipped(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1 << position % 8
    return bytes(changed)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_read_shard_decodes_to_the_attacked_states(case, tmp_path):
    made, storage = attacked(**case), Storage.at(tmp_path)
    row, content = row_of(made.segments), packed(made.segments)
    write_shard(storage, row.fingerprint, content)
    back = read_shard(storage, row.fingerprint)
    assert torch.equal(back.segments.states(made.clean), made.states)
    assert back.row == replace(row, bytes=len(content), sha256=content[-64:].decode())
    assert back.segments.process == made.segments.process
    assert back.segments.shape == made.segments.shape
    assert torch.equal(back.segments.index, made.segments.index)
    assert torch.equal(back.segments.taken, made.segments.taken)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_reader_that_shares_no_code_gets_the_bits_that_the_model_saw(case):
    made = attacked(**case)
    states = read_states(packed(made.segments), made.images.numpy())
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
def test_any_segments_survive_packing_for_both_readers(seed, n, steps, shape, process, warm):
    segments = random_segments(seed, n=n, steps=steps, shape=shape, process=process, warm=warm)
    images = np.random.default_rng(seed).integers(100, 150, (n, *shape)).astype(np.uint8)
    clean = process.lattice.from_bytes(torch.from_numpy(images))
    states = segments.states(clean)
    content = packed(segments)
    assert torch.equal(unpack_shard(content, "x").segments.states(clean), states)
    assert np.array_equal(read_states(content, images), process.lattice.to_float(states).transpose(0, 1).numpy())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("n", [6, 300])
def test_zarr_python_opens_a_shard_through_its_zip_store(norm, n, tmp_path):
    segments = attacked(norm, n=n, derived=False).segments
    (tmp_path / "shard.zarr.zip").write_bytes(packed(segments))
    with ZipStore(tmp_path / "shard.zarr.zip", mode="r") as store:
        group = zarr.open_group(store, mode="r")
        found = {name: np.asarray(array[...]) for name, array in group.arrays()}  # pyright: ignore[reportAttributeAccessIssue]
        attributes = dict(group.attrs)
    assert found.keys() == shards._arrays(segments).keys()
    for name, values in shards._arrays(segments).items():
        assert found[name].dtype == values.dtype
        assert np.array_equal(found[name], values), name
    assert attributes["format"] == "rap-trajectories"
    assert attributes["version"] == 2
    assert attributes["shape"] == [3, 5, 3]
    assert (attributes["segments"], attributes["steps"]) == (n, 4)
    row = attributes["row"]
    assert isinstance(row, dict)
    assert row.keys() == {each.name for each in fields(LedgerRow)} - {"bytes", "sha256"}
    process = attributes["process"]
    assert {"norm", "denominator", "bound", "step", "project", "noise"} <= process.keys()  # pyright: ignore


def test_tensorstore_opens_every_array_of_a_shard(tmp_path):
    tensorstore = pytest.importorskip("tensorstore")
    segments = attacked(n=300, derived=False).segments
    (tmp_path / "shard.zarr.zip").write_bytes(packed(segments))
    for name, values in shards._arrays(segments).items():
        archive = {"driver": "zip", "base": {"driver": "file", "path": str(tmp_path / "shard.zarr.zip")}}
        found = tensorstore.open({"driver": "zarr3", "kvstore": {**archive, "path": f"{name}/"}}).result()
        assert np.array_equal(found.read().result(), values), name


def test_a_derived_start_is_named_and_not_stored():
    segments = attacked().segments
    assert "start" not in shards._arrays(segments)
    assert shards._attributes(segments)["start"] == {"stored": False, "hash": "splitmix64", "seed": str(2**63 + 11)}


def test_augmentation_comes_back():
    segments = random_segments(1, n=3, steps=2, shape=(1, 3, 3), process=LINF)
    augmentation = torch.tensor([[0, 1, 0], [-4, 4, 1], [2, 0, 1]], dtype=torch.int16)
    object.__setattr__(segments, "augmentation", augmentation)
    back = unpack_shard(packed(segments), "x").segments
    assert back.augmentation is not None
    assert torch.equal(back.augmentation, augmentation)


def test_the_same_segments_make_the_same_bytes_and_nothing_is_compressed_twice(tmp_path):
    content = packed(attacked(derived=False).segments)
    assert packed(attacked(derived=False).segments) == content
    (tmp_path / "shard").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "shard") as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_flipped_bit_is_found_wherever_it_is(norm):
    content = packed(attacked(norm, derived=False).segments)
    for position in range(0, len(content), 7):
        with pytest.raises(AlteredShardError, match=r"shard somewhere: found .*expected the shard that was committed"):
            unpack_shard(flipped(content, position), "somewhere")


def test_a_truncated_shard_is_found_wherever_it_ends():
    content = packed(attacked(derived=False).segments)
    for length in (0, 1, 64, 65, len(content) // 2, len(content) - 1):
        with pytest.raises(AlteredShardError, match="shard somewhere: found"):
            unpack_shard(content[:length], "somewhere")


def test_foreign_readers_find_a_flipped_bit_in_every_chunk(tmp_path):
    content, path = packed(attacked(derived=False).segments), tmp_path / "shard.zarr.zip"
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        chunks = [each for each in archive.infolist() if "/c/" in each.filename]
    assert len(chunks) == 6
    for chunk in chunks:
        middle = chunk.header_offset + 30 + len(chunk.filename) + chunk.file_size // 2
        path.write_bytes(flipped(content, middle))
        with ZipStore(path, mode="r") as store, pytest.raises(zipfile.BadZipFile, match="CRC-32"):
            zarr.open_group(store, mode="r")[chunk.filename.partition("/")[0]][...]  # pyright: ignore


def test_a_missing_shard_is_named_with_what_to_do(tmp_path):
    with pytest.raises(MissingShardError, match=re.escape(str(tmp_path / shard_key("0123")))) as missing:
        read_shard(Storage.at(tmp_path), "0123")
    assert "Restore the file, or start the run anew under another --name" in str(missing.value)


def test_another_shard_in_its_place_is_refused(tmp_path):
    segments, storage = attacked().segments, Storage.at(tmp_path)
    storage.put(shard_key("other"), packed(segments))
    with pytest.raises(AlteredShardError, match=f"found shard {row_of(segments).fingerprint}"):
        read_shard(storage, "other")


def test_a_shard_of_a_later_format_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(shards, "VERSION", 3)
    content = packed(attacked().segments)
    monkeypatch.undo()
    with pytest.raises(ShardError, match="version 3; this program reads 'rap-trajectories', version 2"):
        unpack_shard(content, "x")


@pytest.mark.parametrize("case", [{"derived": False}, {"warm": True}, {"norm": "L2"}], ids=["Linf", "warm", "L2"])
def test_the_code_in_the_readme_reads_a_shard(case, tmp_path):
    text = (Path(__file__).parents[3] / "stages/trajectories/README.md").read_text().partition("**Shard.**")[2]
    reading, decoding = (block.partition("```")[0] for block in text.split("```python\n")[1:3])
    linf, _, l2 = decoding.partition("# L2\n")
    made = attacked(n=300, **case)
    (tmp_path / "shard.zarr.zip").write_bytes(packed(made.segments))
    known: dict = {"np": np, "ceil": math.ceil, "path": tmp_path / "shard.zarr.zip"}
    exec(reading, known)
    process, k = known["attributes"]["process"], known["attributes"]["steps"]
    known |= {name: process[name] for name in ("bound", "project", "step")} | {"den": process["denominator"]}
    known |= {"P": made.images[0].numel(), "k": k}
    known |= {name: known["read"](name) for name in shards._arrays(made.segments)}
    for i in (0, 1, 255, 256, 299):
        for t in range(k + 1):
            scope = known | {"image": made.images[i].numpy(), "i": i, "t": t, "start": known.get("start", [0] * 300)[i]}
            if process["norm"] == "Linf":
                exec(linf, scope)
            else:
                before = linf.partition("x = np.clip(X")[0]  # X and bit, which both norms share
                exec(before + l2, scope)
            assert np.array_equal(scope["x"], made.states[t, i].numpy().reshape(-1))
