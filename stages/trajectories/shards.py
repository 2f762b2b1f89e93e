"""Shards: segments on disk, as a Zarr v3 group that any Zarr reader opens (README, "Formats").

The group's zarr.json lists size and sha256 of every other file, so its own sha256 seals the whole shard.
A reader hashes the very bytes that it decodes: a missing chunk, which Zarr itself would read as zeros, an
altered and a truncated one are each named in an error.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import zarr
from zarr.abc.buffer import Buffer
from zarr.abc.codec import BytesBytesCodec
from zarr.buffer import cpu
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from stages.fingerprint import canonical
from stages.rap.attack import AttackProcess
from stages.trajectories.codec import Segments, pack_delta, pack_signs, unpack_delta, unpack_signs
from stages.trajectories.disk import sync_directory, write_files

FORMAT = "rap-trajectories"
VERSION = 1
CHUNK = 256  # examples: a chunk costs 0.1-0.35 ms whatever its size, and reading one example reads its chunk
ROOT = "zarr.json"

# Level 1: what higher levels gain on sign planes is under 1 % (tests/benchmarks/trajectory_sizes.py).
PLANES: tuple[BytesBytesCodec, ...] = (ZstdCodec(level=1, checksum=True),)
# Bitshuffle: the upper bits of small numbers are all zero. Blosc has no checksum of its own.
DIFFERENCES: tuple[BytesBytesCodec, ...] = (
    BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", typesize=2),
    Crc32cCodec(),
)


class ShardError(RuntimeError):
    """A shard that cannot be read; the message names the shard, the file, what was found and what to do."""


class MissingShardError(ShardError):
    """A shard of which nothing is there."""


class TornShardError(ShardError):
    """A shard of which a file is missing or has another size."""


class AlteredShardError(ShardError):
    """A shard whose bytes are not those that were written."""


@dataclasses.dataclass(frozen=True)
class ShardSeal:
    """What a ledger keeps to recognise a shard."""

    bytes: int
    """Size of all files together."""
    sha256: str
    """sha256 of the group's zarr.json, which holds the sha256 of every other file."""


def write_shard(path: Path, segments: Segments, *, provenance: Mapping[str, object]) -> ShardSeal:
    """Write segments as a new Zarr group at ``path``, safe against power loss when this returns.

    Returns the seal. Raises FileExistsError where ``path`` exists; whoever wants to replace a shard writes
    beside it and renames. ``provenance`` is kept in the group's attributes (scalars, lists, mappings).
    """
    path.mkdir(parents=True)
    files = _encode(segments, canonical(provenance))
    write_files(path, files)
    sync_directory(path.parent)
    return _seal(files)


def seal(path: Path) -> ShardSeal:
    """The seal of a complete shard of unknown origin, such as one whose ledger row was never written.

    Raises ShardError as `read_shard`.
    """
    return _seal(_read_files(path, None))


def read_shard(path: Path, *, expected: ShardSeal | None) -> Segments:
    """The segments of the shard at ``path``, whose bytes are those of the ``expected`` seal.

    Without a seal the shard is only compared with its own list of files. Raises MissingShardError,
    TornShardError or AlteredShardError; none of them is ever read as data.
    """
    files = _read_files(path, expected)
    arrays = _open_group(files)
    return _decode(arrays, json.loads(files[ROOT])["attributes"])


def _encode(segments: Segments, provenance: object) -> dict[str, bytes]:
    """The files of a shard, the group's zarr.json last."""
    content: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(content), zarr_format=3)
    for name, values in _arrays(segments).items():
        group.create_array(
            name,
            data=values,
            chunks=(min(CHUNK, len(values)), *values.shape[1:]),
            compressors=DIFFERENCES if name == "delta" else PLANES,
            chunk_key_encoding={"name": "default", "separator": "."},
            # Zarr would leave out a chunk of zeros; here every chunk is a file
            config={"write_empty_chunks": True},  # pyright: ignore[reportArgumentType]
        )
    files = {name: content[name].to_bytes() for name in sorted(content) if name != ROOT}
    attributes = {
        **_attributes(segments),
        "provenance": provenance,
        "files": {name: [len(file), _sha256(file)] for name, file in files.items()},
    }
    document = {**json.loads(content[ROOT].to_bytes()), "attributes": attributes}
    attributes["sha256"] = _document_sha256(document)
    return {**files, ROOT: json.dumps(document, indent=2).encode()}


def _arrays(segments: Segments) -> dict[str, np.ndarray]:
    arrays = {"index": segments.index.numpy(), "made": segments.made.numpy()}
    if segments.augmentation is not None:
        arrays["augmentation"] = segments.augmentation.numpy()
    if segments.start is not None:
        arrays["start"] = segments.start.numpy()
    if segments.signs is not None:
        arrays["signs"], arrays["nonzero"] = pack_signs(segments.signs)
    if segments.delta is not None:
        arrays["delta"] = pack_delta(segments.delta)
    return arrays


def _attributes(segments: Segments) -> dict[str, object]:
    """What a reader of any language needs to decode the arrays."""
    start: dict[str, object] = {"stored": True}
    if segments.start_seed is not None:
        # as a string: a 64-bit integer is more than many JSON readers hold exactly
        start = {"stored": False, "hash": "splitmix64", "seed": str(segments.start_seed)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "process": canonical(segments.process),
        "shape": list(segments.shape),
        "segments": len(segments),
        "steps": segments.steps,
        "start": start,
    }


def _document_sha256(document: Mapping) -> str:
    """sha256 of the group's metadata but for this sum itself, so that a shard without a row can be checked."""
    attributes = {name: value for name, value in document["attributes"].items() if name != "sha256"}
    return _sha256(json.dumps({**document, "attributes": attributes}, sort_keys=True).encode())


def _seal(files: Mapping[str, bytes]) -> ShardSeal:
    return ShardSeal(bytes=sum(map(len, files.values())), sha256=_sha256(files[ROOT]))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_files(path: Path, expected: ShardSeal | None) -> dict[str, bytes]:
    """Every file of a shard by name, each with the bytes that the seal and the list in zarr.json promise."""
    root = _read_file(path, ROOT)
    if expected is not None and _sha256(root) != expected.sha256:
        raise AlteredShardError(_damage(path, ROOT, f"sha256 {_sha256(root)}", expected.sha256))
    files = {}
    for name, (size, sha256) in _listed_files(path, root).items():
        content = files[name] = _read_file(path, name)
        if len(content) != size:
            raise TornShardError(_damage(path, name, f"{len(content)} bytes", f"{size} bytes"))
        if _sha256(content) != sha256:
            raise AlteredShardError(_damage(path, name, f"sha256 {_sha256(content)}", sha256))
    return {**files, ROOT: root}


def _read_file(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except FileNotFoundError:
        if not path.exists():
            raise MissingShardError(_damage(path, "directory", "nothing", "a Zarr group")) from None
        raise TornShardError(_damage(path, name, "no such file", "the file that was written")) from None


def _listed_files(path: Path, root: bytes) -> dict[str, list]:
    try:
        document = json.loads(root)
        attributes = document["attributes"]
        intact = attributes["sha256"] == _document_sha256(document)
        found, files = (attributes["format"], attributes["version"]), attributes["files"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AlteredShardError(_damage(path, ROOT, repr(error), f"the metadata of a {FORMAT} shard")) from error
    if not intact:
        raise AlteredShardError(_damage(path, ROOT, "other metadata", "those of the sha256 in it"))
    if found != (FORMAT, VERSION):
        raise ShardError(
            f"shard {path} has format {found[0]!r}, version {found[1]!r}; this program reads {FORMAT!r}, "
            f"version {VERSION}: read it with the program that wrote it, or make it again"
        )
    return files


def _damage(path: Path, name: str, found: str, expected: str) -> str:
    return (
        f"shard {path}: {name}: found {found}, expected {expected}; the shard is damaged and nothing of it "
        f"was used: restore it, or delete {path} and the file of the ledger that lists it ({path.name}.parquet, or "
        "merged.parquet, of which the other shards are then made again too), and run the same command"
    )


def _open_group(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    store = MemoryStore({name: cpu.Buffer.from_bytes(content) for name, content in files.items()})
    group = zarr.open_group(store, mode="r", zarr_format=3)
    return {name: np.asarray(array[...]) for name, array in group.arrays()}


def _decode(arrays: Mapping[str, np.ndarray], attributes: Mapping) -> Segments:
    channel, height, width = attributes["shape"]
    signs = delta = None
    if "delta" in arrays:
        delta = unpack_delta(arrays["delta"])
    else:
        signs = unpack_signs(arrays["signs"], arrays["nonzero"], pixels=channel * height * width)
    optional = {name: torch.from_numpy(arrays[name]) if name in arrays else None for name in ("augmentation", "start")}
    start = attributes["start"]
    return Segments(
        process=AttackProcess(**attributes["process"]),
        shape=(channel, height, width),
        index=torch.from_numpy(arrays["index"]),
        made=torch.from_numpy(arrays["made"]),
        start_seed=None if start["stored"] else int(start["seed"]),
        signs=signs,
        delta=delta,
        **optional,
    )
