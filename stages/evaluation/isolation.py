"""Attacks of one's own, kept from changing what comes after them: the model, random numbers, PyTorch's settings."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from stages import numerics
from stages.evaluation.accuracy import device_of, evaluating, to_float
from stages.evaluation.attacks import Attack, returned_images
from stages.evaluation.verdict import AttackError, distances, tolerance
from stages.nets.copies import CopyError, copied
from stages.rap.threat import ThreatModel

SEED = 0  # the same for each batch, as AutoAttack's, so that a chunk's result does not depend on those before it


def isolated(name: str, attack: Attack) -> Attack:
    """The attack on a copy of the model, from a fixed seed, with all settings behind it as they were.

    It raises AttackError, which names the attack, where that raises anything or returns no images, or images that were
    rounded out of the ball.
    """

    def run(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        with unchanged(images.device):
            # copied in here: what was made in inference mode has no gradients, and a copy of it has
            given = _copied(model), images.clone(), labels.clone(), replace(threat)
            try:
                returned = attack(*given)
                made = returned_images(name, returned, images)
                _check_rounding(name, returned.dtype, made, images.cpu(), threat)
            except (AttackError, torch.OutOfMemoryError):  # whose remedy is another
                raise
            except (Exception, SystemExit) as error:
                raise AttackError(
                    f"attack {name} raised {type(error).__name__} on {len(images)} images of shape "
                    f"{list(images.shape[1:])}: {error}"
                ) from error
            return made

    return run


def _check_rounding(name: str, kind: torch.dtype, made: Tensor, images: Tensor, threat: ThreatModel) -> None:
    """Raise AttackError where a type of fewer bits than float32 has rounded images out of the ball."""
    allowed = threat.radius + tolerance(threat, images[0].numel())
    if kind.itemsize < 4 and (outside := int((distances(made, images, threat.norm) > allowed).sum())):
        raise AttackError(
            f"attack {name} returned {str(kind).removeprefix('torch.')}, which rounds {outside} of {len(images)} "
            "images out of the ball, where none counts: return float32, clamped to the ball in float32"
        )


def try_attack(
    name: str,
    attack: Attack,
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
) -> None:
    """Raises ValueError where an attack of one's own fails on the first two images, alone or together, or does not
    return an image for each."""
    clean, labels, device = to_float(images[:2]), labels[:2], device_of(model)
    try:
        with evaluating(model):
            for count in range(1, len(clean) + 1):
                isolated(name, attack)(model, clean[:count].to(device), labels[:count].to(device), threat)
    except AttackError as error:
        raise ValueError(f"{error} (tried on {len(clean)} images before the work)") from error


@contextmanager
def unchanged(device: torch.device) -> Iterator[None]:
    """Random numbers from a seed and gradients inside of the block; behind it, settings and numbers as they were."""
    numbers, others, kind = np.random.get_state(), random.getstate(), torch.get_default_dtype()
    with (
        numerics.verdict(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(SEED)
        np.random.seed(SEED)
        random.seed(SEED)
        try:
            yield
        finally:
            np.random.set_state(numbers)
            random.setstate(others)
            torch.set_default_dtype(kind)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except CopyError as error:
        raise AttackError(
            f"{error}: an attack of one's own is given a copy, so that nothing that it changes reaches the next images"
        ) from error
