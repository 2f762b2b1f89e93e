"""A quick fit on a few of the digits, and what is passed to it."""

from typing import Any

import torch
from torch import Tensor, nn

from stages.data.datasets import ImageData
from stages.nets.unet import UNET_SIZES, UNet
from stages.rap.process import AttackConfig
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.training.fit import fit

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


def quick(classifier: nn.Module, loader: Any, **settings: Any) -> RobustClassifier:
    settings = {
        "threat": THREAT,
        "attack": AttackConfig(steps=2),
        "epochs": 1,
        "progress": lambda line: None,
    } | settings
    return fit(adapter(), classifier, loader, **settings)
