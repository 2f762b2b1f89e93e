"""What a model must be before anyone attacks it: a deterministic map from [0, 1] images to logits."""

from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from stages.evaluation.accuracy import device_of

# Of the logits' size: room for sums in another order on a GPU; a random defence differs by far more.
SAME = 1e-4


def check_model(
    model: nn.Module,
    images: Shaped[Tensor, "..."],
    labels: Int64[Tensor, "..."],
    *,
    classes: int,
    random: bool = False,
) -> None:
    """Passes a model that an attack can judge, on a few images: floats [image, channel, height, width].

    It must be in eval mode, and give finite logits [image, class], the same ones twice unless ``random``. That it
    normalises inside cannot be seen; that it is fed pixels in [0, 1] is checked.

    Raises ValueError that says what was found and what to do.
    """
    check_images(images, labels, classes)
    training = next((name or "the model" for name, part in model.named_modules() if part.training), None)
    if training:
        raise ValueError(f"{training} is in training mode, so it is not what will be used: call model.eval()")
    images = images.to(device_of(model))
    logits, again = answer_of(model, images), answer_of(model, images)
    _check_logits(logits, len(images), classes)
    difference = (logits - again).abs().max().item()
    if not random and difference > SAME * logits.abs().max().item():
        raise ValueError(
            f"the model answers the same images differently, by up to {difference:g}: an attack would chase its "
            'noise. Make it deterministic, or evaluate it as a randomised one (AutoAttack version "rand")'
        )


def answer_of(model: nn.Module, images: Shaped[Tensor, "image channel height width"]) -> Any:  # noqa: ANN401 - unchecked
    """Whatever the model answers, without a gradient. Raises ValueError, with its reason, where it raises anything."""
    try:
        with torch.no_grad():
            return model(images)
    except Exception as error:
        raise ValueError(
            f"the model raised {type(error).__name__} on images of shape {list(images.shape)}, which are floats "
            f"[image, channel, height, width] in [0, 1]: {error}"
        ) from error


def check_images(images: Shaped[Tensor, "..."], labels: Int64[Tensor, "..."], classes: int) -> None:
    """Passes floats [image, channel, height, width] in [0, 1] with their labels in 0 .. classes - 1.

    Raises ValueError that says what was found and what to do.
    """
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
        raise ValueError(
            f"images have shape {list(images.shape)} and labels {list(labels.shape)}; "
            "expected [image, channel, height, width] and [image], with at least one image"
        )
    channels, height, width = images.shape[1:]
    if channels == height > 4 >= width:
        raise ValueError(
            f"images have shape {list(images.shape)}, which looks like [image, height, width, channel]; expected "
            "[image, channel, height, width]: use images.permute(0, 3, 1, 2)"
        )
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; expected floats in [0, 1]: divide uint8 images by 255")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images lie in [{low:g}, {high:g}]; expected [0, 1]: divide by 255 if they are bytes, and move "
            "normalisation into the model, so that the radius means pixels"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels lie in [{int(labels.min())}, {int(labels.max())}]; expected 0 to {classes - 1} for "
            f"{classes} classes"
        )


def _check_logits(logits: object, images: int, classes: int) -> None:
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (images, classes):
        found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(
            f"the model returned {found}; expected logits of shape [{images}, {classes}], one row an image"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the model returned NaN or infinity; look at its weights and its normalisation")
    if _sums_to_one(logits) and logits.min() >= 0:
        raise ValueError(
            "the model returned probabilities (rows that are not negative and sum to 1), whose gradients vanish: "
            "return the values before the softmax"
        )
    if _sums_to_one(logits.exp()):
        raise ValueError(
            "the model returned log-probabilities (rows whose exp sums to 1): return the values before log_softmax"
        )


def _sums_to_one(values: Tensor) -> bool:
    return bool(((values.double().sum(1) - 1).abs() < 1e-4).all())  # 1e-4: ten classes in float16
