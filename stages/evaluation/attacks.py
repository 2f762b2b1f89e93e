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

from stages.evaluation.accuracy import Accuracy, device_of, evaluating, to_float
from stages.evaluation.verdict import AttackError, ChunkVerdict, ask, distances, verify
from stages.rap.threat import ThreatModel

Attack = Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]
"""(model in eval mode, images [image, channel, height, width] in [0, 1], labels [image], threat) to images of the
same shape. What lies outside of the ball or of [0, 1] is not counted."""


@dataclass(frozen=True)
class NamedAttack:
    """An attack with its name in tables and messages."""

    name: str
    function: Attack
    is_batched: bool = False
    """It makes its own batches, and is given all images at once."""


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
    """Images that came back as NaN, or outside of the ball or of [0, 1]; they count as not broken by it."""
    seconds: float

    @property
    def accuracy(self) -> Accuracy:
        return Accuracy.from_mask(self.robust)

    @property
    def verdict(self) -> ChunkVerdict:
        """The same as a verdict, in which this attack's name stands for what it broke."""
        named = zip(self.robust, self.clean, strict=True)
        return ChunkVerdict(
            broken_by=tuple(None if robust else self.name if right else "clean" for robust, right in named),
            adversarial=self.adversarial,
            distance=self.distance,
            flags=(),
            seconds={self.name: self.seconds},
            refused={self.name: self.refused} if self.refused else {},
        )


def run_attack(
    attack: NamedAttack,
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    *,
    batch: int = 128,
) -> AttackResult:
    """Attack in batches, and `verify` what comes back; the model is attacked in eval mode and left as it was.

    ``batch`` is also the number of images that the model is asked about together. Raises AttackError where the attack
    returns anything but floats of the images' shape.
    """
    began, together = time.perf_counter(), len(images) if attack.is_batched else batch
    clean, device, labels = to_float(images), device_of(model), labels.cpu()
    right = ~ask(model, clean, labels, batch=batch)
    with evaluating(model):
        parts = [
            # clones, so that an attack that works in place does not move the image that its ball is around
            returned_images(
                attack.name, attack.function(model, part.clone().to(device), target.clone().to(device), threat), part
            )
            for part, target in zip(clean.split(together), labels.split(together), strict=True)
        ]
    found = verify(model, torch.cat(parts), clean, labels, threat, batch=batch)
    broken = torch.from_numpy(right & found.broken)
    adversarial = torch.where(broken[:, None, None, None], found.images, clean)
    return AttackResult(
        name=attack.name,
        clean=right,
        robust=right & ~found.broken,
        adversarial=adversarial.numpy(),
        distance=distances(adversarial, clean, threat.norm),
        refused=int((right & found.refused).sum()),
        seconds=time.perf_counter() - began,
    )


def returned_images(name: str, returned: object, attacked: Tensor) -> Float32[Tensor, "image channel height width"]:
    """What an attack returned, as float32 on the CPU. Raises AttackError for anything but floats of the same shape."""
    found = f"a {type(returned).__name__}"
    if isinstance(returned, Tensor):
        layout = "" if returned.layout == torch.strided else f" as {returned.layout}"
        found = f"{str(returned.dtype).removeprefix('torch.')} of shape {list(returned.shape)}{layout}"
        if returned.is_floating_point() and returned.layout == torch.strided and returned.shape == attacked.shape:
            return returned.detach().to("cpu", torch.float32)
    raise AttackError(
        f"attack {name} returned {found}; expected a dense tensor of floats in [0, 1] of shape {list(attacked.shape)}, "
        "an image for each that it was given"
    )


def refusal_flag(attack: str, images: int) -> str:
    """What is to be said of images that an attack returned and that `verify` refused."""
    return (
        f"{attack}: {images} image{'s' if images > 1 else ''} came back as NaN, outside of the ball or of [0, 1], or "
        "classified correctly when the model was asked again; they count as not broken by it"
    )


def worst_case(masks: Sequence[Bool[np.ndarray, " image"]]) -> Bool[np.ndarray, " image"]:
    """True where an image remains robust to everything; the robust accuracy of an honest report.

    Raises ValueError where there is nothing to combine, or the masks are of different images.
    """
    if not masks:
        raise ValueError("no attack was run: there is no worst case")
    if len({len(mask) for mask in masks}) > 1:
        raise ValueError(f"the attacks were run on {[len(mask) for mask in masks]} images; they must be the same ones")
    return np.logical_and.reduce(masks)
