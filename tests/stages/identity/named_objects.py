"""Objects whose names the tests compare, and a module whose globals they change."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

STRENGTH = 0.5


def helper(images: Tensor) -> Tensor:
    return STRENGTH * images


class Detector(nn.Module):
    """A model with what a state dict leaves out: a switch, a nested setting, a function, a buffer that is not saved."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        for parameter in self.linear.parameters():
            nn.init.constant_(parameter, 0.25)
        self.on = True
        self.settings: dict[str, Any] = {"thresholds": [0.1, 0.2]}
        self.prepare: Callable[[Tensor], Tensor] = helper
        self.register_buffer("shift", torch.zeros(4), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.prepare(images) + self.shift) * (1 if self.on else -1)


def twice(model: nn.Module, images: Tensor, labels: Tensor, threat: object) -> Tensor:
    return helper(helper(images))
