"""What every check is given, and what it gives back."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool
from torch import nn

from stages.evaluation.attacks import AttackResult, worst_case
from stages.evaluation.checks.attacking import WhiteBox, run_pgd
from stages.evaluation.checks.examined import CheckSize, Examined
from stages.evaluation.evidence import Check, Curve
from stages.evaluation.pgd import PGDConfig
from stages.rap.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A check, the curves behind it, and attacks in the model's own ball, which count in its robust accuracy."""

    check: Check
    curves: tuple[Curve, ...] = ()
    results: tuple[AttackResult, ...] = ()


def not_applicable(number: int, name: str, reason: str) -> Outcome:
    """A check that was not run, and why."""
    says = f"Not judged: {reason}."
    return Outcome(check=Check(number, name, "not applicable", "not run", images=0, says=says))


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the model answers, apart from what it answers."""

    random: bool
    """It answers the same images differently."""
    batch_dependent: bool
    """Its answer for an image depends on the images beside it."""
    adaptive: bool
    """It takes gradients while it answers."""
    difference: float
    """The largest difference of two answers for one image, as a share of the largest logit."""

    @property
    def deterministic(self) -> bool:
        """True for a fixed function of each image."""
        return not (self.random or self.batch_dependent)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """What every check is given: the model on the images that are attacked, and what all checks lean on."""

    examined: Examined
    size: CheckSize
    behaviour: Behaviour
    clean: Bool[np.ndarray, " image"]
    white_box: WhiteBox
    square: AttackResult | None
    """None where its official code fails on images of this size."""
    broken_by: tuple[str | None, ...] = ()
    """AutoAttack's verdicts, also on images beyond those that are attacked here."""
    again: AttackResult | None = None
    """Of a randomised model: the long attack a second time, from other starts; what luck alone breaks."""
    remaining: Bool[np.ndarray, " image"] = field(init=False)
    """True where no attack through the model's own gradient broke the image, nor one that was run before."""

    def __post_init__(self) -> None:
        count = len(self.clean)
        before = [_padded(result.robust, count) for result in self.examined.earlier]
        own = [by is None or by == "square" for by in self.examined.broken_by]
        masks = [self.clean, *(result.robust for result in self.white_box.results), *before]
        object.__setattr__(self, "remaining", worst_case([*masks, _padded(np.array(own, dtype=bool), count)]))

    @property
    def images(self) -> int:
        return len(self.clean)

    @property
    def square_alone(self) -> tuple[int, int]:
        """How many images Square breaks and no gradient does, here or in AutoAttack; of how many."""
        here = set() if self.square is None else set(np.flatnonzero(self.remaining & ~self.square.robust).tolist())
        there = {place for place, by in enumerate(self.broken_by) if by == "square"}
        return len(here | there), max(self.images, len(self.broken_by))

    def run_pgd(
        self,
        config: PGDConfig,
        *,
        name: str | None = None,
        through: nn.Module | None = None,
        threat: ThreatModel | None = None,
    ) -> AttackResult:
        """`run_pgd` on this model; to the end where one wrong answer says little, since the model is random.

        Without a name it has that of its steps, and of its ball where that is another one.
        """
        if name is None and threat not in (None, self.examined.threat):
            name = f"PGD-{config.steps} at {threat.norm} {threat.radius:.3g}"
        to_the_end = self.behaviour.random
        return run_pgd(
            self.examined, self.size, config, name=name, through=through, threat=threat, to_the_end=to_the_end
        )


def _padded(mask: Bool[np.ndarray, " covered"], count: int) -> Bool[np.ndarray, " image"]:
    """The mask on all images: what was not covered remains robust."""
    return np.concatenate([mask, np.ones(count - len(mask), dtype=bool)])
