"""Accuracy with its sample size and interval, and a model as it is evaluated.

>>> str(Accuracy(correct=375, images=512))
'73.2 % [69.2, 76.9] of 512'
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from stages.nets.copies import copied
from stages.rap.threat import Lattice

Network = TypeVar("Network", bound=nn.Module)
QUANTILE = 1.959963984540054  # 97.5 % of the standard normal distribution: a two-sided interval of 95 %


class NonFiniteLogits(ValueError):
    """A model returned NaN or infinity, of which no accuracy can be told."""


@dataclass(frozen=True)
class Accuracy:
    """A share of images that were classified correctly, with the 95 % interval of its sample size."""

    correct: int
    images: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.images or self.images == 0:
            raise ValueError(
                f"{self.correct} of {self.images} is no accuracy: pass at least 1 image, and at most all correct"
            )

    @classmethod
    def from_mask(cls, mask: Bool[np.ndarray, " image"]) -> "Accuracy":
        """The accuracy of a mask that is True where an image was classified correctly."""
        return cls(correct=int(mask.sum()), images=len(mask))

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson, 1927; close to nominal also for few images and for shares near 0 or 1.

        Brown, Cai & DasGupta, "Interval estimation for a binomial proportion", 2001, recommend it.
        """
        share, per_image = self.value, QUANTILE**2 / self.images
        centre = (share + per_image / 2) / (1 + per_image)
        spread = QUANTILE * math.sqrt(share * (1 - share) / self.images + per_image / 4 / self.images)
        half = spread / (1 + per_image)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.images}"

    def as_json(self) -> dict[str, int | float | list[float]]:
        """Counts, share and interval, as they stand in results and metrics."""
        return {
            "correct": self.correct,
            "images": self.images,
            "value": self.value,
            "interval": list(self.interval),
        }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, its weights without gradients, its logits in the images' precision; as it was afterwards.

    FAB calls ``backward``, which would otherwise leave gradients on the weights. Logits of a model that computes in
    bfloat16 or float16 are too coarse for the losses of attacks and have types that most of them do not take.
    """
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    tracked = [weight for weight in model.parameters() if weight.requires_grad]
    converted = nn.Module.register_forward_hook(model, _in_precision_of_images)  # also on a ScriptModule
    try:
        if any(training for _, training in modes):  # a module that was frozen or exported has no eval to call
            model.eval()
        for weight in tracked:
            weight.requires_grad_(False)
        yield
    finally:
        converted.remove()
        for module, training in modes:
            module.training = training
        for weight in tracked:
            weight.requires_grad_(True)


def _in_precision_of_images(model: nn.Module, arguments: tuple[Any, ...], logits: object) -> object:
    if isinstance(logits, Tensor) and logits.is_floating_point() and arguments and isinstance(arguments[0], Tensor):
        return logits.to(arguments[0].dtype)
    return logits


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights lie; the CPU for a model without weights."""
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def on_device(model: Network, device: str) -> Network:
    """The model where it lies already on a device of this type, else a copy there: whoever gave it keeps it."""
    return model if device_of(model).type == torch.device(device).type else copied(model).to(device)


def to_float(images: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The float32 images in [0, 1] of uint8 images: the very bits that training sees."""
    pixels = Lattice(255)
    return pixels.to_float(pixels.from_bytes(images.cpu()))


def finite_logits(
    model: nn.Module, images: Float[Tensor, "image channel height width"]
) -> Float[Tensor, "image class"]:
    """The model's logits. Raises NonFiniteLogits where one of them is NaN or infinite."""
    logits = model(images)
    finite = torch.isfinite(logits).all(1)
    if not bool(finite.all()):
        raise NonFiniteLogits(
            f"the model returned NaN or infinite logits for {int((~finite).sum())} of {len(images)} images; "
            "finite ones are needed: look for a training run that diverged, or a precision that overflows"
        )
    return logits


def predict(
    model: nn.Module, images: Float[Tensor, "image channel height width"], *, batch: int = 256
) -> Int64[np.ndarray, " image"]:
    """The class of the largest logit of each image."""
    device = device_of(model)
    with torch.no_grad(), evaluating(model):
        parts = [finite_logits(model, part.to(device)).argmax(1).cpu() for part in images.split(batch)]
    return torch.cat(parts).numpy()


def clean_mask(
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    *,
    batch: int = 256,
) -> Bool[np.ndarray, " image"]:
    """True where the model classifies the image itself correctly."""
    return predict(model, to_float(images), batch=batch) == labels.numpy(force=True)
