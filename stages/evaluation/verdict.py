"""Verdicts: what attacks did to each image of a chunk; what they return counts only where it is verified."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor, nn

from stages.evaluation.accuracy import device_of, evaluating
from stages.rap.threat import Norm, ThreatModel

# A float32 pixel near 1 is rounded by up to 6e-8 where x + radius is formed, and L2 lengths are summed in
# float32; 1e-6 covers both and is far below anything that changes a prediction's meaning (1/255 = 4e-3).
TOLERANCE = 1e-6
ROUNDING = 6e-8


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkVerdict:
    """What attacks found on a chunk, image by image.

    ``broken_by`` names the first attack that broke an image, "clean" where the image itself is
    misclassified (which counts as not robust), None where it remains robust. ``adversarial`` holds the broken
    images' adversaries and the other images as they are, ``distance`` how far they are from the images
    in the threat's norm. ``flags`` are AutoAttack's own warnings, and say when not to trust it. ``refused``
    counts, by attack, the images that came back as adversaries and are none, by `verify`: they count as not
    broken by it.
    """

    broken_by: tuple[str | None, ...]
    adversarial: Float32[np.ndarray, "image channel height width"]
    distance: Float64[np.ndarray, " image"]
    flags: tuple[str, ...]
    seconds: dict[str, float]
    refused: Mapping[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> Bool[np.ndarray, " image"]:
        """True where the image itself is classified correctly."""
        return np.array([attack != "clean" for attack in self.broken_by])

    @property
    def robust(self) -> Bool[np.ndarray, " image"]:
        """True where the image is classified correctly and no attack broke it."""
        return np.array([attack is None for attack in self.broken_by])


class AttackError(RuntimeError):
    """An attack that ended in an error of its own, on images that it should attack."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Verified:
    """Which of the images that an attack returned are adversaries."""

    broken: Bool[np.ndarray, " image"]
    """True where an image is finite, in the ball and in [0, 1], and the model misclassifies it."""
    refused: Bool[np.ndarray, " image"]
    """True where it is not finite, or outside of the ball or of [0, 1]."""
    images: Float32[Tensor, "image channel height width"]
    """The returned images, and in place of the refused ones the images as they are."""


def verify(
    model: nn.Module,
    returned: Float32[Tensor, "image channel height width"],
    clean: Float32[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    *,
    batch: int,
) -> Verified:
    """What of the images that an attack returned counts, whatever the attack: each is measured, and the model asked.

    A rounding (`tolerance`) outside of the ball is allowed, one outside of [0, 1] is cut off. Ask in the attack's own
    batches: a deterministic model then answers with the same bits, also where two logits differ by a rounding only.
    """
    inside = returned.clamp(0, 1)
    cut = (returned - inside).abs().flatten(1).amax(1).numpy()
    away = distances(inside, clean, threat.norm)
    # of a NaN both are NaN, which is not at most anything
    allowed = (cut <= TOLERANCE) & (away <= threat.radius + tolerance(threat, clean[0].numel()))
    asked = torch.where(torch.from_numpy(allowed)[:, None, None, None], inside, clean)
    broken = allowed & ask(model, asked, labels, batch=batch)
    return Verified(broken=broken, refused=~allowed, images=asked)


def ask(
    model: nn.Module,
    images: Float32[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    *,
    batch: int,
) -> Bool[np.ndarray, " image"]:
    """True where the model misclassifies an image of a ball."""
    device = device_of(model)
    with torch.no_grad(), evaluating(model):
        parts = [
            misclassified(model(part.to(device)), target.to(device)).cpu()
            for part, target in zip(images.split(batch), labels.split(batch), strict=True)
        ]
    return torch.cat(parts).numpy()


def unanswered(model: nn.Module, images: Float32[Tensor, "image channel height width"], *, batch: int) -> bool:
    """Whether the model has no finite answer to some of the images."""
    with torch.no_grad(), evaluating(model):
        return not all(bool(model(part.to(device_of(model))).isfinite().all()) for part in images.split(batch))


def misclassified(logits: Float[Tensor, "image class"], labels: Int64[Tensor, " image"]) -> Bool[Tensor, " image"]:
    """True where the largest logit is not the label's, or one is NaN: that is no answer to an image that is allowed."""
    return (logits.argmax(1) != labels) | logits.isnan().any(1)


def distances(
    adversarial: Float32[Tensor, "image channel height width"],
    clean: Float32[Tensor, "image channel height width"],
    norm: Norm,
) -> Float64[np.ndarray, " image"]:
    """The distance of each pair of images in a norm, computed in float64."""
    difference = (adversarial.double() - clean.double()).flatten(1)
    return difference.norm(p={"Linf": torch.inf, "L2": 2, "L1": 1}[norm], dim=1).numpy()


def tolerance(threat: ThreatModel, pixels: int) -> float:
    """By how much a distance over so many pixels may exceed the radius: rounding, and nothing that an attack gains by.

    Sums in float32 are rounded in proportion to their size; in L1 the rounding of every pixel adds up.
    """
    return TOLERANCE * max(1.0, threat.radius) + (pixels * ROUNDING if threat.norm == "L1" else 0.0)
