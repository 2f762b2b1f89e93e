"""Any attack, run on images and checked: what it claims counts only where it is really adversarial.

>>> def nothing(model, images, labels, threat):
...     return images
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from torch import Tensor, nn

from stages.evaluation.accuracy import Accuracy, device_of, evaluating, predict, to_float
from stages.evaluation.verdict import ChunkVerdict, distances, tolerance
from stages.rap.threat import ThreatModel

Attack = Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]
"""(model in eval mode, images [image, channel, height, width] in [0, 1], labels [image], threat) to images of the
same shape. What lies outside of the ball or of [0, 1] is not counted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackResult:
    """What an attack did to each image.

    ``clean`` is True where the image itself is classified correctly, ``robust`` where the attack did not break it
    either. ``adversarial`` holds the broken images' adversaries, and the other images as they are; ``distance`` is
    measured in the threat's norm.
    """

    name: str
    clean: Bool[np.ndarray, " image"]
    robust: Bool[np.ndarray, " image"]
    adversarial: Float32[np.ndarray, "image channel height width"]
    distance: Float64[np.ndarray, " image"]
    refused: int
    """Images that the attack gave back outside of the ball or of [0, 1]; they count as not broken by it."""
    seconds: float

    @property
    def accuracy(self) -> Accuracy:
        return Accuracy.from_mask(self.robust)

    @property
    def verdict(self) -> ChunkVerdict:
        """The same as a verdict, in which this attack's name stands for what it broke."""
        named = zip(self.robust, self.clean, strict=True)
        return ChunkVerdict(
            broken_by=tuple(None if stood else self.name if right else "clean" for stood, right in named),
            adversarial=self.adversarial,
            distance=self.distance,
            flags=(),
            seconds={self.name: self.seconds},
        )


def run_attack(
    name: str,
    attack: Attack,
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    *,
    batch: int = 128,
) -> AttackResult:
    """Attack in batches and verify every image: in the ball (within `tolerance`), in [0, 1], misclassified.

    The model is attacked in eval mode and left as it was. Raises ValueError where the attack returns images of
    another shape.
    """
    began = time.perf_counter()
    clean, device = to_float(images), device_of(model)
    right = predict(model, clean, batch=batch) == labels.numpy(force=True)
    with evaluating(model):
        parts = [
            attack(model, part.to(device), target.to(device), threat).detach().float().cpu()
            for part, target in zip(clean.split(batch), labels.split(batch), strict=True)
        ]
    found = torch.cat(parts)
    if found.shape != clean.shape:
        raise ValueError(f"attack {name} returned images of shape {list(found.shape)}; expected {list(clean.shape)}")
    in_range = ((found >= 0) & (found <= 1)).flatten(1).all(1).numpy()
    allowed = in_range & (
        distances(found, clean, threat.norm) <= threat.radius + tolerance(threat.norm, clean[0].numel())
    )
    wrong = predict(model, found.nan_to_num(), batch=batch) != labels.numpy(force=True)
    broken = right & wrong & allowed
    adversarial = torch.where(torch.from_numpy(broken)[:, None, None, None], found, clean)
    return AttackResult(
        name=name,
        clean=right,
        robust=right & ~broken,
        adversarial=adversarial.numpy(),
        distance=distances(adversarial, clean, threat.norm),
        refused=int((~allowed).sum()),
        seconds=time.perf_counter() - began,
    )


def worst_case(masks: Sequence[Bool[np.ndarray, " image"]]) -> Bool[np.ndarray, " image"]:
    """True where an image stood everything; the headline of an honest report.

    Raises ValueError where there is nothing to combine, or the masks are of different images.
    """
    if not masks:
        raise ValueError("no attack was run: there is no worst case")
    if len({len(mask) for mask in masks}) > 1:
        raise ValueError(f"the attacks were run on {[len(mask) for mask in masks]} images; they must be the same ones")
    return np.logical_and.reduce(masks)
