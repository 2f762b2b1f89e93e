"""Splits: which images train, which judge the training, and which are only ever tested."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64, UInt8

from stages.fingerprint import array_fingerprint
from stages.randomness import permutation

MOVED = 64  # images that are moved together: 10 MB of 3x224x224


@dataclass(frozen=True, eq=False)
class Split:
    """Images in [0, 255], their labels, and the row of each in the data set's own train or test file."""

    images: UInt8[np.ndarray, "image channel height width"]
    labels: Int64[np.ndarray, " image"]
    rows: Int64[np.ndarray, " image"]

    def __post_init__(self) -> None:
        if np.any(np.diff(self.rows) <= 0):
            raise ValueError("the rows of a split must ascend, each once: sort them before")

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """The hash of images, labels and rows."""
        return array_fingerprint(self.images, self.labels, self.rows)

    def positions(self, rows: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        """Where each row of the data set stands in this split. Raises ValueError for a row that is absent."""
        found = np.searchsorted(self.rows, rows)
        absent = self.rows[np.minimum(found, len(self) - 1)] != rows
        if absent.any():
            raise ValueError(
                f"row {rows[absent][0]} is not among the {len(self)} rows of this split "
                f"({self.rows[0]} to {self.rows[-1]}): take rows from the same split's `rows`"
            )
        return found.astype(np.int64)

    def take(self, positions: Int64[np.ndarray, " taken"]) -> "Split":
        """The images at some positions, in order of row."""
        ordered = np.sort(positions)
        return Split(self.images[ordered], self.labels[ordered], self.rows[ordered])

    def keep(self, positions: Int64[np.ndarray, " kept"]) -> "Split":
        """As `take`, in the memory of this split, which is used up: a large data set is not held twice."""
        ordered = np.sort(positions)
        for start in range(0, len(ordered), MOVED):  # to the front, where nothing lies that is still to be moved
            block = ordered[start : start + MOVED]
            self.images[start : start + len(block)] = self.images[block]
        return Split(self.images[: len(ordered)], self.labels[ordered], self.rows[ordered])


def repeated(split: Split, *others: Split) -> int:
    """How many images of a split stand, pixel by pixel, in others as well."""
    known = {_digest(image) for other in others for image in other.images}
    return sum(_digest(image) in known for image in split.images)


def _digest(image: UInt8[np.ndarray, "channel height width"]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def divide(split: Split, first: int, last: int, *key: int | str) -> tuple[Split, Split]:
    """The first and the last images of a split in the random order of a key: disjoint, of these numbers.

    More of either contain the fewer, and the one does not depend on the number of the other. The split is used up: the
    larger part lies in its memory.
    """
    if first + last > len(split):
        raise ValueError(f"cannot take {first} and {last} images out of {len(split)}: ask for fewer")
    order = permutation(len(split), *key)
    head, tail = order[:first], order[len(order) - last :]
    if first <= last:
        return split.take(head), split.keep(tail)
    small = split.take(tail)
    return split.keep(head), small
