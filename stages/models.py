"""A classifier that exists already, whoever trained it: by import path, from a zoo, or as weights for a network here.

>>> ModelConfig(name="my_package.models:build", arguments='{"depth": 28}').keywords
{'depth': 28}
"""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stages.named import imported, said
from stages.nets.architectures import ClassifierConfig, build_classifier
from stages.nets.interface import logits_key, through_interface
from stages.nets.normalisation import check_normalisation
from stages.nets.zoos import ZOOS, ZooNetwork, zoo_network
from stages.paths import local_path
from stages.settings import check_settings, read_arguments
from stages.weights import load_weights


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A classifier that exists already. It is put into eval mode and never trained here."""

    name: str | None = None
    """Also --model: a saved model's directory (RUN/model); pretrained:digits, which comes with the package;
    "my_package.models:build", a function that returns a torch.nn.Module; or timm:NAME, torchvision:NAME,
    robustbench:NAME where that package is installed."""
    arguments: str = "{}"
    """Keyword arguments of that function, or of the package's own, as JSON: '{"depth": 28}'; '{"pretrained": false}' of
    timm and '{"weights": null}' of torchvision are random weights, for as many classes as the data have."""
    weights: str | None = None
    """Also --weights: a safetensors file, or one of torch.save with a state dict, for the network; without --model,
    for that of --classifier.architecture."""
    part: str | None = None
    """Which set of weights, where that file holds several that fit: its key, such as ema."""
    mean: tuple[float, ...] = ()
    """Also --mean: mean of each channel in pixels of [0, 1], for a network that wants normalised images; unset: that
    which timm or torchvision know of their weights, else the network takes images in [0, 1] and normalises inside."""
    std: tuple[float, ...] = ()
    """Also --std: standard deviation of each channel, likewise."""
    output: str | None = None
    """Where the logits are in an answer that is no tensor: a key, an attribute, or a place counted from 0; unset:
    those called logits, else the only part with a column for each class."""

    def __post_init__(self) -> None:
        check_settings(self, "model")
        if self.name is None and (self.mean or self.std or self.output or self.arguments != "{}"):
            raise ValueError("model.arguments, model.output, mean and std are a model's: name it by model")
        if len(self.mean) != len(self.std) or (self.std and min(self.std) <= 0):
            raise ValueError(
                f"mean is {self.mean} and std {self.std}; give both, a number for each channel in pixels of [0, 1], "
                "with std above 0"
            )
        if self.part and not self.weights:
            raise ValueError(f"model.part is {self.part!r}, a part of a file of weights: name that by weights")
        self.keywords  # noqa: B018 - refuses what is no JSON

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments, read. Raises ValueError for what is no object of JSON."""
        return read_arguments(self.arguments, "model.arguments")

    @property
    def is_given(self) -> bool:
        """Whether there is a classifier, so that none has to be trained."""
        return self.name is not None or self.weights is not None


def bring_model(
    config: ModelConfig, own: ClassifierConfig, inputs: dict[str, Any], *, called: str = "--model"
) -> tuple[nn.Module, ModelConfig]:
    """The classifier in eval mode on the CPU, and all of it but its weights, by which `rebuild_model` makes it again.

    Without a name it is the network of ``own`` with the weights of a file. ``inputs`` are the arguments of
    `build_classifier` beside its config. Raises ValueError, in the words of whoever ``called`` it, for what cannot be
    imported, called or fetched, for weights that cannot be read or do not fit, and for an answer without logits.
    """
    found = _network(config, own, inputs, trained=config.weights is None, called=called)
    network, known = found.network.eval(), config
    if config.weights is not None:
        name = f"--weights {config.weights}"
        path = local_path(config.weights, "--weights")
        load_weights(network, path, name=name, remedy=_other_network(config), part=config.part)
        check_normalisation(network, name)
        known = replace(config, weights=None, part=None)
    if config.name is None:
        return network, known
    known = replace(known, **({} if config.mean else {"mean": found.mean, "std": found.std}))
    network = through_interface(network, mean=known.mean, std=known.std)
    key = config.output or _output(network, inputs, called)
    return through_interface(found.network, mean=known.mean, std=known.std, output=key).eval(), replace(
        known, output=key or None
    )


def rebuild_model(known: ModelConfig, own: ClassifierConfig, inputs: dict[str, Any]) -> nn.Module:
    """What `bring_model` made, in eval mode, with whatever weights. Raises ValueError as that does."""
    network = _network(known, own, inputs, trained=False, called="its classifier").network
    if known.name is None:
        return network.eval()
    return through_interface(network, mean=known.mean, std=known.std, output=known.output or "").eval()


def _network(
    config: ModelConfig, own: ClassifierConfig, inputs: dict[str, Any], *, trained: bool, called: str
) -> ZooNetwork:
    if config.name is None:
        return ZooNetwork(build_classifier(own, **inputs))
    zoo, _, name = config.name.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what has random weights has the same ones when the same command is given again
        if zoo in ZOOS:
            shape = {"channels": inputs["channels"], "classes": inputs["classes"]}
            return zoo_network(zoo, name, config.keywords, **shape, trained=trained, called=called)
        return ZooNetwork(_call(config.name, config.keywords, called))


def _call(path: str, arguments: dict[str, Any], called: str) -> nn.Module:
    function: Any = imported(path, called, "a function in it, as in my_package.models:build")
    if isinstance(function, nn.Module) or not callable(function):
        kind = "a network" if isinstance(function, nn.Module) else "no function"
        raise ValueError(  # noqa: TRY004 - a setting of the user's is wrong, whatever its type
            f"{called} {path!r} is {kind}, an object of type {type(function).__name__}: name a function that returns "
            "the network"
        )
    given = f"with {', '.join(arguments)}" if arguments else "without arguments"
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{called} {path!r} is called {given}, but {error}: give its arguments by {called}.arguments, as "
            "'{\"depth\": 28}'"
        ) from error
    try:
        network = function(**arguments)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{called} {path!r} raised an error instead of returning a network ({said(error)}): it must work when it "
            f"is called {given}, wherever the command runs"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(  # noqa: TRY004 - a setting of the user's is wrong, whatever its type
            f"{called} {path!r} returned an object of type {type(network).__name__}; it must return a torch.nn.Module"
        )
    return network


def _output(network: nn.Module, inputs: dict[str, Any], called: str) -> str:
    """The key of the logits, "" for an answer that is a tensor. Raises ValueError where it cannot be told."""
    size = inputs["size"]
    height, width = (size, size) if isinstance(size, int) else size
    try:
        with torch.no_grad():
            answer = network(torch.full((1, inputs["channels"], height, width), 0.5))
    except Exception:  # whatever anybody's forward may raise is said by the contract, with what to do
        return ""
    key = "" if isinstance(answer, Tensor) else logits_key(answer, inputs["classes"])
    if key is None:
        raise ValueError(
            f"{called} returns a {type(answer).__name__} in which no part, or more than one, has a column for each of "
            f"the {inputs['classes']} classes of the data: name the logits by {called}.output, or return them alone"
        )
    return key


def _other_network(config: ModelConfig) -> str:
    """What to do about weights that do not fit."""
    if config.name is not None:
        return "name the network that they were trained in with --model, or rename the tensors"
    return (
        "name the network that they were trained in with --classifier.architecture or --model, or rename the tensors "
        "(the networks of this project also hold normalise.mean and normalise.std, [channel, 1, 1] in pixels of [0, 1])"
    )
