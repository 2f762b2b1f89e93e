"""The base classifier: one of the networks here, or anybody's, by import path, checked on loading."""

import inspect
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from stages.named import imported, said
from stages.nets.cnn import CNN
from stages.nets.normalisation import check_normalisation
from stages.nets.resnet import ResNet18
from stages.nets.wrn import WideResNet
from stages.numerics import Arithmetic
from stages.paths import local_path
from stages.settings import check_settings
from stages.weights import load_weights


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Arithmetic):
    """The classifier that is to become robust, and how it is trained where no weights are given."""

    architecture: Literal["cnn", "resnet18", "wrn-28-10", "resnet18-narrow"] = "cnn"
    """The network, where no factory is given; resnet18-narrow has an eighth of the channels, for one CPU core."""
    factory: str | None = None
    """Any other network: "my_package.models:build", called without arguments, returns a torch.nn.Module that
    takes images in [0, 1], normalises inside and returns logits."""
    weights: str | None = None
    """A safetensors file, or a file of torch.save with a state dict, for the network; unset: it is trained here."""
    images: int | None = None
    """Training images for it, a fixed random choice; unset: all but the hold-out."""
    epochs: int = 10
    """Passes over the training images; 0 with a factory: its network comes with its weights and is not trained."""
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
        if self.factory is not None and not all(self.factory.partition(":")):
            raise ValueError(
                f"classifier.factory is {self.factory!r}; it must be module:function, such as my_package.models:build"
            )
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
        comes_trained = self.factory is not None or self.weights is not None
        if self.epochs < (0 if comes_trained else 1):
            raise ValueError(
                f"classifier.epochs is {self.epochs}; it must be at least 1, or 0 for a network that comes "
                "trained: set classifier.weights or classifier.factory"
            )


def build_classifier(
    config: ClassifierConfig,
    *,
    channels: int,
    size: int,
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Module:
    """The classifier in eval mode on the CPU: with its weights where the config names them, else untrained.

    ``mean`` and ``std`` of the training images, in pixels of [0, 1], go into the networks of this project; a
    factory's network normalises on its own.

    Raises ValueError for a factory that cannot be imported or called or returns no module, and for weights
    that cannot be read or do not fit.
    """
    if config.factory is not None:
        classifier = _call_factory(config.factory)
    elif config.architecture == "cnn":
        classifier = CNN(channels, size, classes, mean, std)
    elif config.architecture == "wrn-28-10":
        classifier = WideResNet(channels, classes, mean=mean, std=std)
    else:
        width = 8 if config.architecture == "resnet18-narrow" else 64
        classifier = ResNet18(channels, classes, mean=mean, std=std, width=width)
    if config.weights is not None:
        name = f"classifier.weights {config.weights}"
        path = local_path(config.weights, "classifier.weights")
        load_weights(classifier, path, name=name, remedy=_other_network(config))
        check_normalisation(classifier, name)
    return classifier.eval()


def _call_factory(path: str) -> nn.Module:
    factory: Any = imported(path, "classifier.factory", "a function in it, as in my_package.models:build")
    if isinstance(factory, nn.Module) or not callable(factory):
        kind = "a network" if isinstance(factory, nn.Module) else "no function"
        raise ValueError(  # noqa: TRY004 - a setting of the user's is wrong, whatever its type
            f"classifier.factory {path!r} is {kind}, an object of type {type(factory).__name__}: name a function that "
            "takes no arguments and returns the network"
        )
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"classifier.factory {path!r} is called without arguments, but {error}: name a function that takes none"
        ) from error
    try:
        classifier = factory()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"classifier.factory {path!r} raised an error instead of returning a network ({said(error)}): it must "
            "work when it is called without arguments, wherever the command runs"
        ) from error
    if not isinstance(classifier, nn.Module):
        raise ValueError(  # noqa: TRY004 - a setting of the user's is wrong, whatever its type
            f"classifier.factory {path!r} returned an object of type {type(classifier).__name__}; it must return a "
            "torch.nn.Module"
        )
    return classifier


def _other_network(config: ClassifierConfig) -> str:
    """What to do about weights that do not fit."""
    if config.factory is not None:
        return "name the network that they were trained in with classifier.factory, or rename the tensors"
    return (
        "name the network that they were trained in with classifier.architecture or classifier.factory, or rename the "
        "tensors (the networks of this project also hold normalise.mean and normalise.std, [channel, 1, 1] in pixels "
        "of [0, 1])"
    )
