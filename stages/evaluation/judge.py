"""The judge: one fixed fresh attack, by which every decision of a run and every claim about it is made.

Search, early stopping, the choice of what is shipped and claimed speed-ups all ask it, on the hold-out,
in the target ball. Its attack is not an option: a recipe that could choose it would grade itself.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor, nn

from stages import numerics, randomness
from stages.evaluation.accuracy import Accuracy, clean_mask
from stages.evaluation.pgd import PGDConfig, pgd_mask
from stages.rap.threat import ThreatModel
from stages.settings import check_settings

# The strongest of the three losses at 20 steps: of 360 digits at Linf 0.2, cross-entropy left 207, margin 210
# and dlr 231 standing on an adapter, 252, 262, 268 on an adversarially trained CNN, 23, 31, 39 on a plain one.
ATTACK = PGDConfig(steps=20, restarts=1, loss="cross-entropy", seed=0)


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """When and on how much of the hold-out the judge is asked (PGD-20, one random start)."""

    images: int | None = 256
    """Images of the hold-out, drawn once and for all; unset: all of them. 256 give +-6 points."""
    every: int = 5
    """Rounds from one judgement to the next."""

    def __post_init__(self) -> None:
        check_settings(self, "judge")
        for name, value in {"images": self.images, "every": self.every}.items():
            if value is not None and value < 1:
                raise ValueError(f"judge.{name} is {value}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """Clean and robust accuracy, and per judged image whether it was classified correctly under attack."""

    clean: Accuracy
    robust: Accuracy
    mask: Bool[np.ndarray, " judged"]
    rows: Int64[np.ndarray, " judged"]


@numerics.verdict()
def judge(
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    rows: Int64[np.ndarray, " image"],
    threat: ThreatModel,
    config: JudgeConfig,
) -> Judgement:
    """The judge's verdict on a model: always the same images, starts and steps for the same hold-out.

    ``rows`` are the images' rows in the data set, and key the starts of the attack.
    """
    chosen = _choose(len(images), config.images)
    images, labels, rows = images[chosen], labels[chosen], rows[chosen]
    robust = pgd_mask(model, images, labels, threat, config=ATTACK, rows=rows)
    return Judgement(
        clean=Accuracy.from_mask(clean_mask(model, images, labels, batch=ATTACK.batch)),
        robust=Accuracy.from_mask(robust),
        mask=robust,
        rows=rows,
    )


def _choose(available: int, wanted: int | None) -> Int64[np.ndarray, " judged"]:
    """Positions of the judged images: a fixed random sample, since a hold-out may be ordered by class."""
    if wanted is None or wanted >= available:
        return np.arange(available)
    return np.sort(randomness.permutation(available, "judge")[:wanted])
