"""What counts of images can and cannot tell: the tolerances of all checks, in one place.

A check compares what happened to the same images under two attacks, so its figures are paired counts, and its
tolerance is an exact binomial test at 5 %. Nothing here is fitted to a model.

>>> exceeds(2, 64), exceeds(3, 64)
(False, True)
>>> outnumbers(4, 0), outnumbers(5, 0)
(False, True)
"""

import numpy as np
from jaxtyping import Bool
from scipy.special import bdtrc

from stages.evaluation.evidence import Verdict

LEVEL = 0.05  # chance of a false alarm of a single test
TOLERATED = 0.01  # one point of accuracy: below it, attacks differ by luck and nobody reads a result otherwise


def at_least(hits: int, trials: int, share: float) -> float:
    """The probability of ``hits`` or more in ``trials`` where each happens with probability ``share``."""
    return 1.0 if hits <= 0 else float(bdtrc(hits - 1, trials, share))


def exceeds(hits: int, images: int, share: float = TOLERATED) -> bool:
    """True where so many images contradict a true share of ``share`` (one-sided exact binomial test, 5 %)."""
    return at_least(hits, images, share) < LEVEL


def outnumbers(more: int, fewer: int) -> bool:
    """True where the first of two discordant paired counts is larger beyond chance.

    The exact one-sided sign test (McNemar 1947): of the images on which two attacks differ, each attack should
    win half if they were equally strong.
    """
    return more > fewer and at_least(more, more + fewer, 0.5) < LEVEL


def judge_zero(hits: int, images: int) -> Verdict:
    """The verdict where none is allowed: none passes, up to the tolerated share warns, more fails."""
    if hits == 0:
        return "pass"
    return "fail" if exceeds(hits, images) else "warn"


def alone(first: Bool[np.ndarray, " image"], second: Bool[np.ndarray, " image"]) -> int:
    """How many images the first attack broke and the second did not, from their masks of what remains robust."""
    return int((second & ~first).sum())
