"""The base classifier: one of the networks here, or anybody's, by import path, checked on loading."""

import importlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from stages.nets.cnn import CNN
from stages.nets.resnet import ResNet18
from stages.nets.wrn import WideResNet
from stages.numerics import Arithmetic


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
    augment: bool = False
    """Random crops and horizontal flips while training; not for digits, which a flip changes."""

    def __post_init__(self) -> None:
        if self.factory is not None and not all(self.factory.partition(":")):
            raise ValueError(
                f"classifier.factory is {self.factory!r}; it must be module:function, such as my_package.models:build"
            )
        if self.images is not None and self.images < self.batch:
            raise ValueError(
                f"classifier.images is {self.images}, less than a batch of {self.batch}: use more images, or a smaller "
                "classifier.batch"
            )
        if min(self.batch, self.threads) < 1:
            raise ValueError(
                f"classifier.batch is {self.batch} and classifier.threads {self.threads}; both must be at least 1"
            )
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf):
            raise ValueError(
                f"classifier.learning_rate is {self.learning_rate} and classifier.weight_decay "
                f"{self.weight_decay}; the first must be above 0, the second 0 or above"
            )
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
        _load_weights(classifier, Path(config.weights))
    return classifier.eval()


def _call_factory(path: str) -> nn.Module:
    module_name, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"classifier.factory {path!r} cannot be imported ({error}): name an importable module, from the "
            "working directory or installed, and a function in it, as in my_package.models:build"
        ) from error
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ValueError(
            f"classifier.factory {path!r} is called without arguments, but {error}: name a function that takes none"
        ) from error
    classifier = factory()
    if not isinstance(classifier, nn.Module):
        raise ValueError(  # noqa: TRY004 - a setting of the user's is wrong, whatever its type
            f"classifier.factory {path!r} returned an object of type {type(classifier).__name__}; it must return a "
            "torch.nn.Module"
        )
    return classifier


def _load_weights(classifier: nn.Module, path: Path) -> None:
    state = _read_state(path)
    expected = classifier.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if missing or unexpected or shapes:
        differing = f"{shapes[0]} with {list(state[shapes[0]].shape)} for {list(expected[shapes[0]].shape)}"
        raise ValueError(
            f"classifier.weights {path} do not fit the network: {len(missing)} missing ({_first(missing)}), "
            f"{len(unexpected)} unexpected ({_first(unexpected)}), {len(shapes)} of another shape "
            f"({differing if shapes else 'none'}): name the network that they were trained in with "
            "classifier.architecture or classifier.factory, or rename the tensors (the networks of this project "
            "also hold normalise.mean and normalise.std, [channel, 1, 1] in pixels of [0, 1])"
        )
    classifier.load_state_dict(state)


def _first(names: list[str]) -> str:
    return f"the first is {names[0]}" if names else "none"


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file or a torch file, of which no code is run."""
    if not path.is_file():
        raise ValueError(f"classifier.weights {path} is no file: give a safetensors file or a file of torch.save")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead the readers into errors of a dozen types
        raise ValueError(
            f"classifier.weights {path} cannot be read ({error}): give a safetensors file, or a file of "
            "torch.save that holds tensors only"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"classifier.weights {path} hold a {type(state).__name__}, not a state dict of names and tensors: "
            "save model.state_dict() alone"
        )
    return dict(state)
