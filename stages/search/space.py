"""The space of a search: for each setting its values or its range, and a sequence of proposals that is a function of
the seed, so that asking for more keeps what was asked for before.

>>> space = {"attack.steps": Choice((5, 10)), "train.learning_rate": Range(5e-4, 5e-3, log=True)}
>>> [list(settings.values()) for settings in itertools.islice(sampled(space, seed=0), 2)]
[[5, 0.00131], [5, 0.0024]]
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stages.randomness import permutation, uniform

Value = str | int | float | bool | None
Settings = dict[str, Value]

DIGITS = 3  # significant ones of a number drawn from a range: finer differences are no other setting
REPEATS = 1000  # draws in a row that were there before, after which a space counts as exhausted


@dataclass(frozen=True)
class Choice:
    """Some values."""

    values: tuple[Value, ...]

    def at(self, share: float) -> Value:
        """The value at a share in [0, 1) of them."""
        return self.values[int(share * len(self.values))]


@dataclass(frozen=True)
class Range:
    """The numbers between two, both included; with ``log`` evenly in their logarithm."""

    low: int | float
    high: int | float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> int | float:
        """The number at a share in [0, 1) of the way."""
        low, high = self.low, self.high + self.whole  # each whole number as likely as the others
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return min(int(value), int(self.high)) if self.whole else self.rounded(value)

    def rounded(self, value: float) -> float:
        """A number of few digits, within the range."""
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


Axis = Choice | Range
Space = Mapping[str, Axis]


def sampled(space: Space, *, seed: int) -> Iterator[Settings]:
    """The random settings of a seed, none of them twice; an end where there are no more."""
    found: set[tuple[Value, ...]] = set()
    last = 0
    for draw in itertools.count():
        if draw - last > REPEATS:
            return
        shares = uniform(len(space), seed, "search", draw)
        settings = {name: axis.at(float(share)) for (name, axis), share in zip(space.items(), shares, strict=True)}
        if tuple(settings.values()) not in found:
            found.add(tuple(settings.values()))
            last = draw
            yield settings


def gridded(space: Space, *, seed: int) -> Iterator[Settings]:
    """All points of the grid, in an order that is random for a seed.

    Raises ValueError for a space with a range.
    """
    points = list(_points(space))
    for place in permutation(len(points), seed, "search grid"):
        yield points[place]


def _points(space: Space) -> Iterator[Settings]:
    ranges = {name: axis for name, axis in space.items() if isinstance(axis, Range)}
    if ranges:
        name, axis = next(iter(ranges.items()))
        raise ValueError(
            f"search.space {name.replace('_', '-')} is a range, of which a grid has no points: give values, as "
            f"{axis.low:g},{axis.high:g}, or use --search.algorithm random"
        )
    for point in itertools.product(*(axis.values for axis in space.values() if isinstance(axis, Choice))):
        yield dict(zip(space, point, strict=True))
