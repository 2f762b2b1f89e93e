"""What is examined, and how thoroughly."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from stages.evaluation.accuracy import device_of, to_float
from stages.evaluation.attacks import AttackResult
from stages.evaluation.checks.explanations import Ablations, SelectionFacts, VanillaTraining
from stages.evaluation.verdict import ask
from stages.rap.threat import ThreatModel
from stages.settings import check_settings


@dataclass(frozen=True, kw_only=True)
class CheckSize:
    """How much the checks do. The default takes a minute or so for an adapter on 8x8 digits on one core."""

    images: int = 64
    """Images on which attacks are run. 64 show a share of 5 % with a chance of 96 %."""
    steps: int = 100
    """Steps of the long attacks; check 4 takes twice as many."""
    short_steps: int = 20
    """Steps of the short attacks, on which curves rest."""
    restarts: int = 10
    """Restarts of the strongest PGD of check 3."""
    queries: int = 500
    """Queries of Square, where AutoAttack's verdicts are not given."""
    draws: int = 100
    """Random points of the ball that are tried on each image."""
    radii: int = 4
    """Points of the curve from the radius to the largest that means something; two smaller ones come before them."""
    gradient_images: int = 32
    """Images whose gradients are compared with differences, each in `directions` random directions."""
    directions: int = 4
    """Random directions an image in the gradient check."""
    binarized: int = 32
    """Images of the binarization test."""
    inner: int = 256
    """Random points inside of the ball that a binarized readout must tell from one on its border."""
    samples: int = 8
    """Draws over which a randomised model is averaged, and how often an adversary is submitted to it again."""
    batch: int = 128
    """Images attacked together."""
    seed: int = 0
    """Seed of all random starts, points and directions."""

    def __post_init__(self) -> None:
        check_settings(self, "checks.size")
        for name, value in vars(self).items():
            least = {"seed": 0, "radii": 2}.get(name, 1)
            if value < least:
                raise ValueError(f"checks.size.{name} is {value}; it must be at least {least}")
        if self.short_steps >= self.steps:
            raise ValueError(
                f"checks.size.short_steps is {self.short_steps} and checks.size.steps {self.steps}: the short attack "
                "must have fewer steps than the long one"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Examined:
    """A model and everything that is known about it. What is optional makes checks "not applicable" where it lacks.

    ``images`` are uint8 and the first of them are attacked; put no image there that decided anything before.
    ``rows`` are their rows in the data set, and key all random starts.

    Raises ValueError where lengths do not fit.
    """

    model: nn.Module
    """Images [image, channel, height, width] in [0, 1] to logits [image, class]."""
    images: UInt8[Tensor, "image channel height width"]
    labels: Int64[Tensor, " image"]
    rows: Int64[np.ndarray, " image"]
    threat: ThreatModel
    undefended: nn.Module | None = None
    """The classifier without the defence."""
    others: tuple[nn.Module, ...] = ()
    """Classifiers of the same task that the defence has never met, such as those of other seeds."""
    earlier: tuple[AttackResult, ...] = ()
    """What other attacks did to the first images, as many as each covers. They count in the robust accuracy."""
    broken_by: tuple[str | None, ...] = ()
    """AutoAttack's verdicts on the first images: what broke each, "clean", or None where it remains robust."""
    autoattack: str = "AutoAttack"
    """What of AutoAttack that was, by its name."""
    flags: tuple[str, ...] = ()
    """AutoAttack's warnings."""
    ablations: Ablations | None = None
    vanilla: VanillaTraining | None = None
    selection: SelectionFacts | None = None

    def __post_init__(self) -> None:
        count = len(self.images)
        if not count or len(self.labels) != count or len(self.rows) != count:
            raise ValueError(
                f"there are {count} images, {len(self.labels)} labels and {len(self.rows)} rows: pass one of each for "
                "every image, and at least 1 image"
            )
        longest = max([len(self.broken_by), *(len(result.robust) for result in self.earlier)])
        if longest > count:
            raise ValueError(f"earlier verdicts cover {longest} images, and there are {count}: pass those images too")

    def first(self, count: int) -> "Examined":
        """The same model on the first images only."""
        return replace(
            self,
            images=self.images[:count],
            labels=self.labels[:count],
            rows=self.rows[:count],
            earlier=tuple(_first(result, count) for result in self.earlier),
            broken_by=self.broken_by[:count],
        )


def on_device(examined: Examined) -> tuple[Float[Tensor, "image channel height width"], Int64[Tensor, " image"]]:
    """The float images and their labels where the model is."""
    device = device_of(examined.model)
    return to_float(examined.images).to(device), examined.labels.to(device)


def clean_of(examined: Examined, size: CheckSize, model: nn.Module | None = None) -> Bool[np.ndarray, " image"]:
    """True where the model, or another, classifies the image itself correctly."""
    return ~ask(model or examined.model, to_float(examined.images), examined.labels, batch=size.batch)


def _first(result: AttackResult, count: int) -> AttackResult:
    return replace(
        result,
        clean=result.clean[:count],
        robust=result.robust[:count],
        adversarial=result.adversarial[:count],
        distance=result.distance[:count],
    )
