"""Two models, or two attacks, on the same images: compared image by image, which needs far fewer of them.

>>> import numpy as np
>>> str(Comparison.of(np.array([True, True, False, True]), np.array([True, False, False, False])))
'+50.0 points [-13.5, +78.9] of 4 images (2 remain robust in the first only, 0 in the second only; McNemar p = 0.5)'
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy.special import bdtr

from stages.evaluation.accuracy import Accuracy


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The paired counts of two masks over the same images."""

    both: int
    """Images that remain robust in both."""
    first_only: int
    second_only: int
    neither: int

    def __post_init__(self) -> None:
        if self.images == 0:
            raise ValueError("there are no images to compare: evaluate both on at least one image of the same data set")

    @classmethod
    def of(cls, first: Bool[np.ndarray, " image"], second: Bool[np.ndarray, " image"]) -> "Comparison":
        """Of two masks, True where an image remains robust. Raises ValueError for masks of different lengths."""
        if len(first) != len(second):
            raise ValueError(f"masks of {len(first)} and {len(second)} images cannot be paired: take the same images")
        return cls(
            both=int((first & second).sum()),
            first_only=int((first & ~second).sum()),
            second_only=int((~first & second).sum()),
            neither=int((~first & ~second).sum()),
        )

    @property
    def images(self) -> int:
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def difference(self) -> float:
        """The first's share minus the second's, in [-1, 1]."""
        return (self.first_only - self.second_only) / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference: Newcombe, "Improved confidence intervals for the difference between
        binomial proportions based on paired data", 1998, method 10.
        """
        first = Accuracy(correct=self.both + self.first_only, images=self.images)
        second = Accuracy(correct=self.both + self.second_only, images=self.images)
        (low_1, high_1), (low_2, high_2) = first.interval, second.interval
        phi = self._correlation(first, second)

        def length(one: float, other: float) -> float:
            return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

        below = length(first.value - low_1, high_2 - second.value)
        above = length(second.value - low_2, high_1 - first.value)
        return max(-1.0, self.difference - below), min(1.0, self.difference + above)

    @property
    def p_value(self) -> float:
        """McNemar's exact two-sided test that neither is better: of the images where they differ, half each way."""
        differing, fewer = self.first_only + self.second_only, min(self.first_only, self.second_only)
        return min(1.0, 2 * float(bdtr(fewer, differing, 0.5)))

    def _correlation(self, first: Accuracy, second: Accuracy) -> float:
        """The phi coefficient, with Newcombe's continuity correction where it is positive."""
        product = self.both * self.neither - self.first_only * self.second_only
        if product > 0:
            product = max(product - self.images / 2, 0)
        margins = first.correct * (self.images - first.correct) * second.correct * (self.images - second.correct)
        return product / math.sqrt(margins) if margins else 0.0

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] of {self.images} images "
            f"({self.first_only} remain robust in the first only, {self.second_only} in the second only; "
            f"McNemar p = {self.p_value:.2g})"
        )

    def as_json(self) -> dict[str, object]:
        """The counts and what follows from them, as results have them."""
        return {
            "images": self.images,
            "both": self.both,
            "first_only": self.first_only,
            "second_only": self.second_only,
            "neither": self.neither,
            "difference": self.difference,
            "interval": list(self.interval),
            "p_value": self.p_value,
        }
