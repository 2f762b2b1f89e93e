"""What names a model, so that a verdict on it is found again, and is given to no other."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from stages import randomness
from stages.evaluation.accuracy import device_of, evaluating, to_float
from stages.identity import object_fingerprint

CLOSE = 0.05
"""Lead of the largest logit, as a share of the largest of all, below which another machine may answer otherwise."""
OFF_GRID = 0.5 / 255  # between two values of an 8-bit image
FAR = 0.1  # about as far as attacks go


def model_identity(model: nn.Module, images: UInt8[Tensor, "image channel height width"]) -> dict[str, object]:
    """What names a model: its code, its attributes and weights, and the classes that it gives a few images.

    The images are taken as they are, off the 8-bit grid, farther away, and noise instead of them: a name that the
    first part missed something of would still differ where answers do. An answer without a clear lead is left open, so
    that a name does not depend on the device, precision or number of threads that answered.

    Raises UnnameableError where the model cannot be recognised.
    """
    clean, device = to_float(images), device_of(model)
    moved = [(clean + size * _noise(clean, size)).clamp(0, 1) for size in (OFF_GRID, FAR)]
    probes = torch.cat([clean, *moved, (1 + _noise(clean, 1.0)) / 2])
    devices = [device] if device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(0)
        logits = model(probes.to(device)).float().cpu()
    return {"model": object_fingerprint(model), "answers": _answers(logits)}


def _noise(
    images: Float[Tensor, "image channel height width"], size: float
) -> Float[Tensor, "image channel height width"]:
    """Uniform in [-1, 1], the same at every call."""
    drawn = 2 * randomness.uniform(images.numel(), "probes", str(size)) - 1
    return torch.from_numpy(drawn.astype(np.float32)).reshape(images.shape)


def _answers(logits: Float[Tensor, "probe class"]) -> list[int]:
    """The class of each probe, -1 where its lead is small."""
    best = logits.topk(min(2, logits.shape[1]), dim=1)
    lead = best.values[:, 0] - best.values[:, -1]
    return torch.where(lead > CLOSE * logits.abs().max(), best.indices[:, 0], -1).tolist()
