"""Verdicts: what attacks did to each image of a chunk, and a second look at it that trusts none of them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from torch import Tensor, nn

from stages.evaluation.accuracy import predict, to_float
from stages.rap.threat import Norm, ThreatModel

# A float32 pixel near 1 is rounded by up to 6e-8 where x + radius is formed, and L2 lengths are summed in
# float32; 1e-6 covers both and is far below anything that changes a prediction's meaning (1/255 = 4e-3).
TOLERANCE = 1e-6
ROUNDING = 6e-8


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkVerdict:
    """What attacks found on a chunk, image by image.

    ``broken_by`` names the first attack that broke an image, "clean" where the image itself is
    misclassified (which counts as not robust), None where it stood. ``adversarial`` holds the broken
    images' adversaries and the other images as they are, ``distance`` how far they are from the images
    in the threat's norm. ``flags`` are AutoAttack's own warnings, and say when not to trust it.
    """

    broken_by: tuple[str | None, ...]
    adversarial: Float32[np.ndarray, "image channel height width"]
    distance: Float64[np.ndarray, " image"]
    flags: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def clean(self) -> Bool[np.ndarray, " image"]:
        """True where the image itself is classified correctly."""
        return np.array([attack != "clean" for attack in self.broken_by])

    @property
    def robust(self) -> Bool[np.ndarray, " image"]:
        """True where the image is classified correctly and no attack broke it."""
        return np.array([attack is None for attack in self.broken_by])


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A second look at a verdict: the positions in the chunk where it does not hold."""

    images: int
    broken: int
    outside_ball: tuple[int, ...]
    outside_range: tuple[int, ...]
    judged_otherwise: tuple[int, ...]
    largest_distance: float

    @property
    def holds(self) -> bool:
        """True when every adversarial image is one, and every other image is classified correctly."""
        return not (self.outside_ball or self.outside_range or self.judged_otherwise)


def verify_chunk(
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    verdict: ChunkVerdict,
    threat: ThreatModel,
    *,
    batch: int = 64,
) -> Verification:
    """The verdict checked again without the attack: ball, range of pixels, and the model's predictions.

    The ball may be exceeded by `tolerance`, the range [0, 1] not at all; a NaN is outside of both.
    """
    adversarial = torch.from_numpy(verdict.adversarial)
    distance = distances(adversarial, to_float(images), threat.norm)
    inside = ((adversarial >= 0) & (adversarial <= 1)).flatten(1).all(1).numpy()
    correct = predict(model, adversarial.nan_to_num(), batch=batch) == labels.numpy(force=True)
    return Verification(
        images=len(images),
        broken=int((~verdict.robust).sum()),
        outside_ball=_positions(~(distance <= threat.radius + tolerance(threat.norm, adversarial[0].numel()))),
        outside_range=_positions(~inside),
        judged_otherwise=_positions(correct != verdict.robust),
        largest_distance=float(distance.max()),
    )


def distances(
    adversarial: Float32[Tensor, "image channel height width"],
    clean: Float32[Tensor, "image channel height width"],
    norm: Norm,
) -> Float64[np.ndarray, " image"]:
    """The distance of each pair of images in a norm, computed in float64."""
    difference = (adversarial.double() - clean.double()).flatten(1)
    return difference.norm(p={"Linf": torch.inf, "L2": 2, "L1": 1}[norm], dim=1).numpy()


def tolerance(norm: Norm, pixels: int) -> float:
    """By how much a distance over so many pixels may exceed a radius: rounding, and nothing that an attack gains by.

    In L1 the rounding of every pixel adds up.
    """
    return TOLERANCE + (pixels * ROUNDING if norm == "L1" else 0.0)


def _positions(mask: Bool[np.ndarray, " image"]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())
