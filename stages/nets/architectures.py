"""The base classifiers that are trained here."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from stages.nets.cnn import CNN
from stages.nets.resnet import ResNet18
from stages.nets.wrn import WideResNet
from stages.numerics import Arithmetic
from stages.settings import check_settings


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Arithmetic):
    """The classifier that is to become robust, and how it is trained where no model is given."""

    architecture: Literal["cnn", "resnet18", "wrn-28-10", "resnet18-narrow"] = "cnn"
    """The network, where no --model is named; resnet18-narrow has an eighth of the channels, for one CPU core."""
    images: int | None = None
    """Training images for it, a fixed random choice; unset: all but the hold-out."""
    epochs: int = 10
    """Passes over the training images."""
    learning_rate: float = 0.05
    """Peak of the one-cycle schedule of SGD with Nesterov momentum 0.9."""
    batch: int = 128
    """Images an update."""
    weight_decay: float = 5e-4
    """Weight decay of all parameters."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes, in [0, 1); a classifier that is less sure of itself has
    gradients where one without is saturated."""
    augment: bool = False
    """Random crops and horizontal flips while training; not for digits, which a flip changes."""

    def __post_init__(self) -> None:
        check_settings(self, "classifier")
        self.check_threads("classifier")
        if self.images is not None and self.images < self.batch:
            raise ValueError(
                f"classifier.images is {self.images}, less than a batch of {self.batch}: use more images, or a smaller "
                "classifier.batch"
            )
        if self.batch < 1:
            raise ValueError(f"classifier.batch is {self.batch}; it must be at least 1")
        if not (self.learning_rate > 0 and self.weight_decay >= 0):
            raise ValueError(
                f"classifier.learning_rate is {self.learning_rate} and classifier.weight_decay "
                f"{self.weight_decay}; the first must be above 0, the second 0 or above"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"classifier.label_smoothing is {self.label_smoothing:g}; it must lie in [0, 1)")
        if self.epochs < 1:
            raise ValueError(f"classifier.epochs is {self.epochs}; it must be at least 1")


def build_classifier(
    config: ClassifierConfig,
    *,
    channels: int,
    size: int | tuple[int, int],
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Module:
    """The classifier in eval mode on the CPU, untrained.

    ``size`` is the height and the width in pixels, one number where they are equal; ``mean`` and ``std`` of the
    training images, in pixels of [0, 1], are part of the network.
    """
    if config.architecture == "cnn":
        classifier = CNN(channels, size, classes, mean, std)
    elif config.architecture == "wrn-28-10":
        classifier = WideResNet(channels, classes, mean=mean, std=std)
    else:
        width = 8 if config.architecture == "resnet18-narrow" else 64
        classifier = ResNet18(channels, classes, mean=mean, std=std, width=width)
    return classifier.eval()
