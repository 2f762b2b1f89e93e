"""The judge: one fixed fresh attack, by which every decision of a run and every claim about it is made.

Search, early stopping, the choice of what is shipped and claimed speed-ups all ask it, on the hold-out,
in the target ball. Its attack is not an option: a recipe that could choose it would grade itself.

It is PGD on cross-entropy from two starts and then, on what remains robust, on the margin to each of the five
likeliest wrong classes, as AutoAttack's targeted attacks do: cross-entropy alone is fooled by smoothed labels and by
training with single steps.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor, nn

from stages import numerics, randomness
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.attacks import Attack, NamedAttack, run_attack
from stages.evaluation.pgd import PGDConfig, pgd
from stages.rap.threat import ThreatModel
from stages.settings import check_settings

# Both parts, and the falling step, are what it takes to rank as AutoAttack does (tests/benchmarks/judge_agreement.py).
ATTACKS = (
    PGDConfig(steps=20, falling=True, restarts=2),
    PGDConfig(steps=20, falling=True, restarts=5, loss="targeted margin", seed=1),
)


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """When and on how much of the hold-out the judge is asked."""

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

    def as_json(self) -> dict[str, object]:
        """The accuracies, and the bits of the mask in hexadecimal digits, as they stand in metrics."""
        remains = np.packbits(self.mask).tobytes().hex()
        return {"clean": self.clean.as_json(), "robust": self.robust.as_json(), "remains": remains}


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
    attack = NamedAttack("the judge", _attack(rows), is_batched=True)
    result = run_attack(attack, model, images, labels, threat, batch=ATTACKS[0].batch)
    return Judgement(clean=Accuracy.from_mask(result.clean), robust=result.accuracy, mask=result.robust, rows=rows)


def _attack(rows: Int64[np.ndarray, " judged"]) -> Attack:
    """The judge's attack on images of those rows: each part on what the one before it left."""

    def attack(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        adversaries, left = images.clone(), np.arange(len(images))
        for config in ATTACKS:
            found, broken = pgd(model, images[left], labels[left], threat, config=config, rows=rows[left])
            adversaries[left] = found
            left = left[~broken.numpy(force=True)]
            if not len(left):
                break
        return adversaries

    return attack


def _choose(available: int, wanted: int | None) -> Int64[np.ndarray, " judged"]:
    """Positions of the judged images: a fixed random sample, since a hold-out may be ordered by class."""
    if wanted is None or wanted >= available:
        return np.arange(available)
    return np.sort(randomness.permutation(available, "judge")[:wanted])
