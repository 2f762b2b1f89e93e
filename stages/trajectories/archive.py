"""Arrays in one object: a Zarr v3 group in an uncompressed ZIP, sealed by its own sha256.

The Zarr documents are written here and not by zarr-python, which takes milliseconds an array; any Zarr v3 reader
opens the result through its zip store, and so do `zipfile` and NumPy alone. Chunks are gzip, which checks itself, as
does every member of a ZIP. The archive's comment is the sha256 of all bytes before it.

>>> content = pack({"a": np.arange(3, dtype=np.int16)}, {"kind": "example"})
>>> arrays, attributes = unpack(content)
>>> arrays["a"].tolist(), attributes
([0, 1, 2], {'kind': 'example'})
"""

import gzip
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np

CHUNK = 256  # rows: enough to compress well, and a long array's chunks can be read one by one
LEVEL = 1  # of gzip: level 4 is 2 to 10 % smaller and takes twice as long
SEAL = 64  # hexadecimal digits of the sha256
_LOCAL_HEADER = struct.Struct("<26x2H")  # of a ZIP's member; it ends in the lengths of the name and the extra field
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same arrays make the same bytes, whenever


class ArchiveError(ValueError):
    """Bytes that are not what was packed; the message says which part."""


def pack(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, object]) -> bytes:
    """The archive of some arrays (integers, at least one row) and attributes (what JSON holds)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        _add(archive, "zarr.json", json.dumps(group).encode())
        for name, array in arrays.items():
            rows = min(CHUNK, len(array))
            _add(archive, f"{name}/zarr.json", _document(array.shape, array.dtype, rows))
            for number, chunk in enumerate(_chunks(array, rows)):
                key = "/".join([name, "c", str(number), *["0"] * (array.ndim - 1)])
                _add(archive, key, gzip.compress(chunk, LEVEL, mtime=0))
        archive.comment = b"0" * SEAL
    body = buffer.getvalue()[:-SEAL]
    return body + hashlib.sha256(body).hexdigest().encode()


def unpack(content: bytes) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and attributes. Raises ArchiveError where the bytes are not those that were packed."""
    if seal(content) is None:
        raise ArchiveError(f"{len(content)} bytes whose sha256 is not the one at their end")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {member.filename: _stored(content, member) for member in archive.infolist()}
        attributes = json.loads(members["zarr.json"])["attributes"]
        suffix = "/zarr.json"
        names = [name[: -len(suffix)] for name in members if name.endswith(suffix)]
        return {name: _read(members, name) for name in names}, attributes
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ArchiveError(f"{error!r} while it was opened") from error


def seal(content: bytes) -> str | None:
    """The sha256 that seals an archive; None where it does not fit the bytes."""
    found, body = content[-SEAL:], memoryview(content)[:-SEAL]
    return found.decode() if hashlib.sha256(body).hexdigest().encode() == found else None


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)


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


def _stored(content: bytes, member: zipfile.ZipInfo) -> bytes:
    """The bytes of a member; the seal has checked them, as `ZipFile.read` would again, slowly."""
    name, extra = _LOCAL_HEADER.unpack_from(content, member.header_offset)
    first = member.header_offset + _LOCAL_HEADER.size + name + extra
    return content[first : first + member.file_size]


def _read(members: Mapping[str, bytes], name: str) -> np.ndarray:
    document = json.loads(members[f"{name}/zarr.json"])
    shape, kind = document["shape"], np.dtype(document["data_type"]).newbyteorder("<")
    rows, rest = document["chunk_grid"]["configuration"]["chunk_shape"][0], "/0" * (len(shape) - 1)
    chunks = [zlib.decompress(members[f"{name}/c/{number}{rest}"], 31) for number in range(-(-shape[0] // rows))]
    content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return np.frombuffer(bytearray(content), kind, count=int(np.prod(shape))).reshape(shape)
