"""Successive halving decided by verdicts: a trial is stopped where the judge tells it apart, never for arriving late.

Jamieson & Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016, with a
paired test at each rung: what cannot be told apart at that number of images goes on, as a tie.

>>> Rungs(first=50, rounds=200, factor=2).all
(50, 100, 200)
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.comparison import Comparison

LEVEL = 0.05
"""McNemar's two-sided p below which two trials are told apart, each pair for itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialVerdict:
    """What the judge found of a trial at a rung: on the same hold-out images in the same order for every trial."""

    clean: Accuracy
    remains: Bool[np.ndarray, " image"]
    """True where an image remains robust."""
    error: str = ""
    """Why the trial failed for good, as by a loss that became NaN; then no image counts as robust."""

    @property
    def robust(self) -> Accuracy:
        return Accuracy.from_mask(self.remains)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "TrialVerdict":
        """From what `Judgement.as_json` writes, perhaps with an error."""
        clean, images = found["clean"], found["robust"]["images"]
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(found["remains"]), np.uint8), count=images)
        accuracy = Accuracy(correct=clean["correct"], images=clean["images"])
        return cls(clean=accuracy, remains=bits.astype(bool), error=found.get("error", ""))


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """The rounds after which trials are compared: ``first``, and from there ``factor`` times as many, to ``rounds``."""

    first: int
    rounds: int
    factor: int

    @property
    def all(self) -> tuple[int, ...]:
        found = [self.first]
        while found[-1] * self.factor < self.rounds:
            found.append(found[-1] * self.factor)
        return tuple(found) if found[-1] >= self.rounds else (*found, self.rounds)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What follows from the verdicts of a rung; trials by number, the best first."""

    kept: tuple[int, ...]
    """The best 1 / factor."""
    ties: tuple[int, ...]
    """Not among them, but not told apart from the last of them: they go on as well."""
    stopped: tuple[int, ...]
    failed: tuple[int, ...]

    @property
    def going_on(self) -> tuple[int, ...]:
        return self.kept + self.ties


def ranked(verdicts: Mapping[int, TrialVerdict]) -> list[int]:
    """The trials that did not fail, best first: by images that remain robust, then by clean ones, then by number."""
    found = [number for number, verdict in verdicts.items() if not verdict.error]
    return sorted(found, key=lambda n: (-verdicts[n].robust.correct, -verdicts[n].clean.correct, n))


def told_apart(first: TrialVerdict, second: TrialVerdict) -> bool:
    """Whether more images remain robust in one of the two than chance explains (McNemar's exact test, 5 %)."""
    return Comparison.of(first.remains, second.remains).p_value < LEVEL


def decide(verdicts: Mapping[int, TrialVerdict], *, factor: int, always: Collection[int] = ()) -> Decision:
    """Which trials of a rung go on: a function of the verdicts alone, in whatever order they arrived.

    Those of ``always`` are kept unless they failed, beside the others' share.
    """
    order = ranked(verdicts)
    rivals = [number for number in order if number not in always]
    share = -(-len(rivals) // factor)
    best = rivals[:share]
    rest = [number for number in rivals[share:] if told_apart(verdicts[number], verdicts[best[-1]])]
    return Decision(
        kept=tuple(number for number in order if number in best or number in always),
        ties=tuple(number for number in rivals[share:] if number not in rest),
        stopped=tuple(rest),
        failed=tuple(sorted(number for number in verdicts if verdicts[number].error)),
    )


def tied_with_best(verdicts: Mapping[int, TrialVerdict]) -> tuple[int, ...]:
    """The trials that are not told apart from the best of `ranked`, without that one."""
    best, *others = ranked(verdicts)
    return tuple(number for number in others if not told_apart(verdicts[number], verdicts[best]))
