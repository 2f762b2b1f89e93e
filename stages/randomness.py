"""Randomness keyed by what it is for, never by who draws it.

Every random number of a run is a function of (seed, purpose, round, index, ...), so a resumed run,
one worker and four workers draw the same ones. The generator is splitmix64 (Steele, Lea & Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014): integer arithmetic only, the same on
every machine and library version, and short enough to be written down in stages/trajectories/README.md,
where the start of a stored trajectory is re-derived from it.

>>> integers(0, 10, 5, "example", 0).tolist()
[8, 0, 9, 9, 7]
"""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 output for each state, element-wise, modulo 2**64."""
    with np.errstate(over="ignore"):
        mixed = values + GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def key_seed(*key: int | str) -> int:
    """A 64-bit seed for a key such as ``(seed, "restart", round)``; different keys, different seeds."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def bits(count: int, *key: int | str) -> NDArray[np.uint64]:
    """``count`` random 64-bit words for a key."""
    with np.errstate(over="ignore"):
        return splitmix64(np.uint64(key_seed(*key)) + np.arange(count, dtype=np.uint64))


def uniform(count: int, *key: int | str) -> NDArray[np.float64]:
    """``count`` float64 numbers in [0, 1) for a key."""
    return (bits(count, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(low: int, high: int, count: int, *key: int | str) -> NDArray[np.int64]:
    """``count`` integers in [low, high) for a key (modulo bias below 2**-40 for ranges under 2**24)."""
    return (bits(count, *key) % np.uint64(high - low)).astype(np.int64) + low


def normal(count: int, *key: int | str) -> NDArray[np.float64]:
    """``count`` standard normal float64 numbers for a key (Box-Muller)."""
    half = (count + 1) // 2
    radius = np.sqrt(-2.0 * np.log1p(-uniform(half, "radius", *key)))
    angle = 2.0 * np.pi * uniform(half, "angle", *key)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def permutation(count: int, *key: int | str) -> NDArray[np.int64]:
    """The numbers 0 .. count - 1 in random order for a key."""
    return np.argsort(bits(count, *key), kind="stable").astype(np.int64)


def start_levels(seed: int, rows: NDArray[np.int64], pixels: int, bound: int) -> NDArray[np.int16]:
    """The uniform start of each row of a data set, in lattice levels in [-bound, bound].

    Pixel j of row i gets ``splitmix64(splitmix64(seed + i) + j) % (2 bound + 1) - bound``; a stored
    trajectory whose start was drawn like this keeps only ``seed`` (stages/trajectories/README.md).

    Returns an array of shape [rows, pixels].
    """
    with np.errstate(over="ignore"):
        streams = splitmix64(np.uint64(seed) + rows.astype(np.uint64))
        words = splitmix64(streams[:, None] + np.arange(pixels, dtype=np.uint64))
    return ((words % np.uint64(2 * bound + 1)).astype(np.int64) - bound).astype(np.int16)
