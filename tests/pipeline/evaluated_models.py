"""Models and attacks that evaluations name by import path, or pass as they are."""

import os
import socket
import threading

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from stages.numerics import Arithmetic
from stages.rap.threat import ThreatModel

SCALE = 1.0
STEP = 1.0


def build() -> nn.Module:
    """A softmax regression on the digits, from zero weights, with nothing random in it."""
    data, target = map(np.asarray, load_digits(return_X_y=True))
    images, labels = torch.from_numpy(data[:800] / 16).float(), torch.from_numpy(target[:800]).long()
    linear = nn.Linear(64, 10)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimiser = torch.optim.Adam(linear.parameters(), 0.02)
    with Arithmetic().applied():  # the same bits in whatever process
        for _ in range(60):
            optimiser.zero_grad()
            functional.cross_entropy(linear(images), labels).backward()
            optimiser.step()
    return nn.Sequential(nn.Flatten(), linear)


class Scaled(nn.Module):
    """A model that looks a number up where it is imported."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.scaled(images))

    def scaled(self, images: Tensor) -> Tensor:
        return SCALE * images


def half() -> nn.Module:
    """That model behind a number that is set here."""
    global SCALE
    SCALE = 0.5
    return Scaled()


class Outside(nn.Module):
    """A model whose normalisation its users are meant to do themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images / 255)


def leave_the_ball(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """Fools every model with images that are not allowed."""
    return images.flip(0) * 0.5 + 0.5 * torch.rand_like(images)


def flip_the_signs(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """One step as long as the radius, which a linear model does not stand."""
    leaf = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(leaf), labels), leaf)
    return (images + STEP * threat.radius * gradient.sign()).clamp(0, 1)


WAITING = "RAP_TESTS_WAITING"
"""Variable with the port of this machine to which `wait_for_ever` connects once it runs."""


def wait_for_ever(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """Never ends, but for one or two images; whoever listens is told when it begins."""
    if len(images) > 2:
        with socket.create_connection(("127.0.0.1", int(os.environ[WAITING]))):
            threading.Event().wait()
    return images


def three_arguments(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return images
