"""Robust classifiers of the digits, and how they are saved."""

from pathlib import Path

import torch

from stages.data.datasets import DataConfig, load_data
from stages.nets.architectures import ClassifierConfig, build_classifier
from stages.nets.unet import UNet, UNetConfig
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.shipped import save_model

DATA = load_data(DataConfig(name="digits"))
INPUTS = {"channels": 1, "size": 8, "classes": 10, "mean": DATA.mean, "std": DATA.std}
THREAT = ThreatModel(norm="Linf", radius=0.2)


def robust_of(*, adapter: bool = True, architecture: str = "cnn", straight_through: bool = True) -> RobustClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ClassifierConfig(architecture=architecture)  # pyright: ignore[reportArgumentType]
        classifier = build_classifier(config, **INPUTS)  # pyright: ignore[reportArgumentType]
        net = UNet(UNetConfig(width=8, multipliers=(1, 2), attention=1), 1) if adapter else None
        for parameter in net.parameters() if net else ():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return RobustClassifier(net, classifier, steps=10, threat=THREAT, straight_through=straight_through).eval()


def save(directory: Path, robust: RobustClassifier, **classifier: object) -> None:
    config = ClassifierConfig(**classifier)  # pyright: ignore[reportArgumentType]
    save_model(directory, robust, classifier=config, inputs=dict(INPUTS), notes={"judge": "50 %"})
