"""Adversarial weight perturbation (AWP, Wu et al. 2020): a loss at weights that were moved against it first."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

VANISHED = 1e-12  # norm of a gradient that is too small to say where to move: squares of float32 are near underflow


@contextmanager
def moved_along_gradients(weights: Sequence[nn.Parameter], strength: float) -> Iterator[None]:
    """Each matrix or kernel moved along the gradient that it has, by a share ``strength`` of its norm.

    Afterwards all are what they were, to the bit. Biases and scales, and weights without a gradient, stay.
    """
    with torch.no_grad():
        found = [(weight, weight.grad) for weight in weights if weight.ndim > 1]
        moved = [(weight, weight.clone(), gradient) for weight, gradient in found if gradient is not None]
        for weight, before, gradient in moved:
            size = before.norm() / gradient.norm().clamp_min(VANISHED)
            weight += strength * size * gradient
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before, _ in moved:
                weight.copy_(before)
