"""Screening: APGD-CE and targeted APGD on batch after batch, until the interval is narrow enough or time is up.

The interval holds however the end was chosen, so one may look after every batch and stop at will. Two of AutoAttack's
attacks give an upper bound on robust accuracy under AutoAttack, and no claim.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.verdict import ChunkVerdict
from stages.settings import check_settings

LEVEL = 0.05  # the chance that the interval ever, at any number of images, misses the truth
TIGHT = 1e-9  # of a share; far below anything that is printed


@dataclass(frozen=True, kw_only=True)
class ScreeningConfig:
    """When a screening ends."""

    half_width: float = 0.05
    """Half of the interval's width at which it ends."""
    seconds: float = 60.0
    """Time after which no batch is begun."""

    def __post_init__(self) -> None:
        check_settings(self, "screening")
        if not 0 < self.half_width < 0.5:
            raise ValueError(f"screening.half_width is {self.half_width:g}; it must be between 0 and 0.5")
        if not self.seconds > 0:
            raise ValueError(f"screening.seconds is {self.seconds:g}; it must be greater than 0")


@dataclass(frozen=True, kw_only=True)
class Screening:
    """What a screening found. ``robust`` is an upper bound on what AutoAttack would leave."""

    clean: Accuracy
    robust: Accuracy
    ended: Literal["interval", "time", "images"]
    """Why it ended: the interval was narrow enough, time was up, or there were no more images."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the robust accuracy that holds under optional stopping."""
        return sequential_interval(self.robust.correct, self.robust.images)

    def __str__(self) -> str:
        low, high = self.interval
        why = {"interval": "the interval was narrow enough", "time": "time was up", "images": "no images were left"}
        return (
            f"at most {100 * self.robust.value:.1f} % robust [{100 * low:.1f}, {100 * high:.1f}] of "
            f"{self.robust.images} images, a sequential 95 % interval; ended as {why[self.ended]}"
        )

    def as_json(self) -> dict[str, object]:
        return {
            "clean": self.clean.as_json(),
            "robust": {**self.robust.as_json(), "interval": list(self.interval)},
            "ended": self.ended,
        }


def sequential_interval(correct: int, images: int, *, level: float = LEVEL) -> tuple[float, float]:
    """An interval of a share that covers it at all numbers of images at once, with probability 1 - level.

    The confidence sequence of the uniform mixture (Robbins 1970; Howard et al., "Time-uniform, nonparametric,
    nonasymptotic confidence sequences", 2021): all shares p whose mixture likelihood ratio
    B(s + 1, n - s + 1) / (p^s (1 - p)^(n - s)) stays below 1 / level, which by Ville's inequality the true share's
    does for ever with probability 1 - level. Images must come in an order that does not depend on them.
    """
    if not 0 <= correct <= images:
        raise ValueError(f"{correct} of {images} is no count: pass between none and all of them")
    if images == 0:
        return 0.0, 1.0
    wrong, share = images - correct, correct / images
    mixture = math.lgamma(correct + 1) + math.lgamma(wrong + 1) - math.lgamma(images + 2)

    def excluded(p: float) -> bool:
        likelihood = (correct * math.log(p) if correct else 0.0) + (wrong * math.log1p(-p) if wrong else 0.0)
        return mixture - likelihood >= -math.log(level)

    low = _edge(excluded, share, 0.0) if correct else 0.0
    high = _edge(excluded, share, 1.0) if wrong else 1.0
    return low, high


def screen(
    batches: Iterable[ChunkVerdict], config: ScreeningConfig, *, progress: Callable[[str], None] = lambda line: None
) -> Screening:
    """Take verdicts of batches in their order, each attacked when it is asked for, until the config says enough.

    Raises ValueError where there is no batch at all.
    """
    began, clean, robust, images = time.perf_counter(), 0, 0, 0
    ended: Literal["interval", "time", "images"] = "images"
    for verdict in batches:
        clean, robust = clean + int(verdict.clean.sum()), robust + int(verdict.robust.sum())
        images += len(verdict.broken_by)
        low, high = sequential_interval(robust, images)
        progress(f"screening: {images} images, at most {robust / images:.1%} robust [{low:.1%}, {high:.1%}]")
        if high - low <= 2 * config.half_width:
            ended = "interval"
            break
        if time.perf_counter() - began > config.seconds:
            ended = "time"
            break
    return Screening(clean=Accuracy(clean, images), robust=Accuracy(robust, images), ended=ended)


def _edge(excluded: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where the interval ends between its centre and 0 or 1, at which every share is excluded."""
    while abs(outside - inside) > TIGHT:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if excluded(middle) else (middle, outside)
    return outside
