"""A quick fit on a few of the digits, and what is passed to it."""

from typing import Any

import torch
from torch import Tensor

from stages.data.datasets import ImageData
from stages.nets.unet import UNET_SIZES, UNet
from stages.rap.process import AttackConfig
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.training.fit import FitSettings, fit

THREAT = ThreatModel(radius=0.1)
ATTACK = AttackConfig(steps=3)


def adapter() -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(UNET_SIZES["tiny"], channels=1)


def tensors(digits: ImageData, count: int | None = None) -> tuple[Tensor, Tensor]:
    return torch.tensor(digits.train.images[:count]), torch.tensor(digits.train.labels[:count])


def few(digits: ImageData) -> list[tuple[Tensor, Tensor]]:
    return [tensors(digits, 16)]


def quick(classifier: Any, loader: Any, **given: Any) -> RobustClassifier:
    """A fit of one epoch against two steps, unless something else is given; nothing is printed."""
    passed = {"adapter": adapter(), "threat": THREAT, "progress": lambda line: None}
    passed |= {name: given.pop(name) for name in [*passed] if name in given}
    settings = FitSettings(**{"attack": AttackConfig(steps=2), "epochs": 1} | given)
    return fit(passed.pop("adapter"), classifier, loader, settings=settings, **passed)
