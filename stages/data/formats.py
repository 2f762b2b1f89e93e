"""The file formats of MNIST (idx) and CIFAR-10 (binary and Python batches), every byte accounted for."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from stages.data.pickles import PickledArray, load_pickle

BATCH_IMAGES = 10_000
IMAGE_SHAPE = (3, 32, 32)
CLASSES = 10
REMEDY = "Remove it and pass --data.download, or point --data.root at a complete copy"


class DataError(ValueError):
    """A data set that is absent, incomplete or not what it says."""


def read_content(path: Path) -> bytes:
    """The bytes of a file, unpacked where its name ends in .gz."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. {REMEDY}") from error


def check_size(path: Path, found: int, expected: int, meaning: str) -> None:
    """Raises DataError unless a file's content has the expected number of bytes."""
    if found != expected:
        state = "truncated" if found < expected else "longer than it should be"
        raise DataError(f"{path} is {state}: {found} bytes, expected {expected} ({meaning}). {REMEDY}")


def check_labels(path: Path, labels: Shaped[np.ndarray, " image"]) -> None:
    """Raises DataError for a label that is no class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if len(wrong):
        raise DataError(
            f"{path} gives image {wrong[0]} the label {labels[wrong[0]]}; labels are 0 to {CLASSES - 1}. {REMEDY}"
        )


def read_idx(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """The uint8 array of the given shape in an idx file, plain or .gz (format: yann.lecun.com/exdb/mnist).

    Raises DataError when the magic number, the type, the shape or the number of bytes is another.
    """
    content = read_content(path)
    magic = bytes((0, 0, 8, len(shape)))  # 8: unsigned bytes
    if content[:4] != magic:
        raise DataError(
            f"{path} starts with the bytes {content[:4].hex() or '(none)'}; an idx file of unsigned bytes in "
            f"{len(shape)} dimensions starts with {magic.hex()}. {REMEDY}"
        )
    header = 4 + 4 * len(shape)
    sizes = " x ".join(map(str, shape))
    check_size(path, len(content), header + math.prod(shape), f"a header and {sizes}")
    found = struct.unpack(f">{len(shape)}I", content[4:header])
    if found != shape:
        raise DataError(f"{path} holds {' x '.join(map(str, found))} bytes, expected {sizes}. {REMEDY}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_idx_labels(path: Path, count: int) -> Int64[np.ndarray, " image"]:
    """The labels in an idx file. Raises DataError as `read_idx` does, and for a label above 9."""
    labels = read_idx(path, (count,)).astype(np.int64)
    check_labels(path, labels)
    return labels


def read_binary_batch(
    path: Path,
) -> tuple[UInt8[np.ndarray, "image channel height width"], Int64[np.ndarray, " image"]]:
    """Images and labels of a batch of CIFAR-10's binary layout: records of a label and 3072 pixels.

    Raises DataError when the number of bytes is another, or for a label above 9.
    """
    content = read_content(path)
    record = 1 + math.prod(IMAGE_SHAPE)
    check_size(path, len(content), BATCH_IMAGES * record, f"{BATCH_IMAGES} records of {record}")
    records = np.frombuffer(content, np.uint8).reshape(BATCH_IMAGES, record)
    labels = records[:, 0].astype(np.int64)
    check_labels(path, labels)
    return records[:, 1:].reshape(BATCH_IMAGES, *IMAGE_SHAPE), labels


def read_python_batch(
    path: Path,
) -> tuple[UInt8[np.ndarray, "image channel height width"], Int64[np.ndarray, " image"]]:
    """Images and labels of a batch of CIFAR-10's Python layout, a pickle of ``data`` and ``labels``.

    Nothing in the pickle is run. Raises DataError when it holds anything else, or for a label above 9.
    """
    content = read_content(path)
    try:
        batch = load_pickle(content)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path} cannot be read as a batch of CIFAR-10: {error}. {REMEDY}") from error
    data = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get("labels") if isinstance(batch, dict) else None
    shape = (BATCH_IMAGES, math.prod(IMAGE_SHAPE))
    if not isinstance(data, PickledArray) or data.values.shape != shape:
        found = f"shape {data.values.shape}" if isinstance(data, PickledArray) else "no array"
        raise DataError(f"{path} has {found} under 'data'; expected uint8 of shape {shape}. {REMEDY}")
    if not isinstance(labels, list) or len(labels) != BATCH_IMAGES or {type(x) for x in labels} != {int}:
        raise DataError(f"{path} has no list of {BATCH_IMAGES} whole numbers under 'labels'. {REMEDY}")
    check_labels(path, np.array(labels))
    return data.values.reshape(BATCH_IMAGES, *IMAGE_SHAPE), np.array(labels, np.int64)
