"""Arrays in one object: a Zarr v3 group in an uncompressed ZIP, sealed by its own sha256.

The Zarr documents and the ZIP are written here and not by zarr-python and `zipfile`, which take milliseconds an array
and a tenth of one a member; any Zarr v3 reader opens the result through its zip store, and so do `zipfile` and NumPy
alone. Chunks are gzip by ISA-L, four times as fast as zlib's level 1 and smaller. They check themselves, as does every
member of a ZIP. The archive's comment is the sha256 of all bytes before it.

>>> content = pack({"a": np.arange(3, dtype=np.int16)}, {"kind": "example"})
>>> arrays, attributes = unpack(content)
>>> arrays["a"].tolist(), attributes
([0, 1, 2], {'kind': 'example'})
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from isal import isal_zlib

CHUNK = 256  # rows: enough to compress well, and a long array's chunks can be read one by one
LEVEL = 2  # of ISA-L's 0 to 3: 3 is 1 % smaller and takes a third longer
GZIP = 31  # a window of 32 KiB, and gzip's header
_GZIP_ERROR: Any = isal_zlib.error  # a class, which its stub calls an instance
_UNREADABLE = (_GZIP_ERROR, ValueError, KeyError, TypeError, struct.error)
SEAL = 64  # hexadecimal digits of the sha256
LARGEST = 2**32 - 1  # bytes of a ZIP whose places fit into 32 bits

# The parts of a ZIP (APPNOTE 6.3, 4.3.7, 4.3.12 and 4.3.16): each member with a header, then a directory that repeats
# most of it, and its end. All is stored, dated 1980, so that the same arrays make the same bytes, whenever.
_MEMBER, _ENTRY, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_SHARED = struct.Struct("<5H3L2H")  # version, flags, method, time, date; CRC-32, size, size; length of name, of extra
_PLACE = struct.Struct("<3H2L")  # nothing; who may read it, where it is unpacked; where the member begins
_CLOSE = struct.Struct("<4H2LH")  # disks; entries, twice; size and place of the directory; length of the comment


class ArchiveError(ValueError):
    """Bytes that are not what was packed; the message says which part."""


def pack(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, object]) -> bytes:
    """The archive of some arrays (integers, at least one row) and attributes (what JSON holds)."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    members = {"zarr.json": json.dumps(group).encode()}
    for name, array in arrays.items():
        rows = min(CHUNK, len(array))
        members[f"{name}/zarr.json"] = _document(array.shape, array.dtype, rows)
        for number, chunk in enumerate(_chunks(array, rows)):
            key = "/".join([name, "c", str(number), *["0"] * (array.ndim - 1)])
            members[key] = isal_zlib.compress(chunk, LEVEL, GZIP)
    body = _zipped(members)
    return body + hashlib.sha256(body).hexdigest().encode()


def unpack(content: bytes) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and attributes. Raises ArchiveError where the bytes are not those that were packed."""
    if seal(content) is None:
        raise ArchiveError(f"{len(content)} bytes whose sha256 is not the one at their end")
    try:
        members = _members(content)
        attributes = json.loads(members["zarr.json"])["attributes"]
        suffix = "/zarr.json"
        names = [name[: -len(suffix)] for name in members if name.endswith(suffix)]
        return {name: _read(members, name) for name in names}, attributes
    except _UNREADABLE as error:
        raise ArchiveError(f"{error!r} while it was opened") from error


def seal(content: bytes) -> str | None:
    """The sha256 that seals an archive; None where it does not fit the bytes."""
    found, body = content[-SEAL:], memoryview(content)[:-SEAL]
    return found.decode() if hashlib.sha256(body).hexdigest().encode() == found else None


def _zipped(members: Mapping[str, bytes]) -> bytes:
    """A ZIP of the members, all but its comment. Raises ValueError where it would not fit into 4 GiB."""
    parts, directory, place = [], [], 0
    for key, content in members.items():
        name, size = key.encode(), len(content)
        if place + size > LARGEST:
            raise ValueError("a shard of more than 4 GiB: make schedule.cohort_images smaller")
        shared = _SHARED.pack(20, 0, 0, 0, 33, isal_zlib.crc32(content), size, size, len(name), 0)
        directory.append(_ENTRY + b"\x14\x03" + shared + _PLACE.pack(0, 0, 0, 0o600 << 16, place) + name)
        parts += [_MEMBER + shared + name, content]
        place += len(_MEMBER) + len(shared) + len(name) + size
    listed, count = b"".join(directory), len(members)
    return b"".join([*parts, listed, _END, _CLOSE.pack(0, 0, count, count, len(listed), place, SEAL)])


def _members(content: bytes) -> dict[str, bytes]:
    """The members of a ZIP, one after the other; the seal has checked them, as `zipfile` would again, slowly."""
    members, place = {}, 0
    while content.startswith(_MEMBER, place):
        *_, size, name, extra = _SHARED.unpack_from(content, place + len(_MEMBER))
        first = place + len(_MEMBER) + _SHARED.size
        begin = first + name + extra
        place = begin + size
        members[content[first : first + name].decode()] = content[begin:place]
    return members


@lru_cache(maxsize=64)
def _document(shape: tuple[int, ...], kind: np.dtype, rows: int) -> bytes:
    """An array's zarr.json."""
    order = {"name": "bytes", "configuration": {"endian": "little"}} if kind.itemsize > 1 else {"name": "bytes"}
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": kind.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows, *shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [order, {"name": "gzip", "configuration": {"level": LEVEL}}],
        "attributes": {},
    }
    return json.dumps(document).encode()


def _chunks(array: np.ndarray, rows: int) -> Iterator[bytes]:
    """The bytes of each chunk, little-endian; Zarr fills the last one up."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    for first in range(0, len(little), rows):
        chunk = little[first : first + rows]
        yield chunk.tobytes() + bytes((rows - len(chunk)) * little[0].nbytes)


def _read(members: Mapping[str, bytes], name: str) -> np.ndarray:
    shape, kind, rows = _described(members[f"{name}/zarr.json"])
    rest = "/0" * (len(shape) - 1)
    chunks = [isal_zlib.decompress(members[f"{name}/c/{number}{rest}"], GZIP) for number in range(-(-shape[0] // rows))]
    content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return np.frombuffer(bytearray(content), kind, count=math.prod(shape)).reshape(shape)


@lru_cache(maxsize=64)
def _described(document: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and rows a chunk from an array's zarr.json."""
    found = json.loads(document)
    rows = found["chunk_grid"]["configuration"]["chunk_shape"][0]
    return tuple(found["shape"]), np.dtype(found["data_type"]).newbyteorder("<"), rows
