"""Networks of other packages by name: timm, torchvision and RobustBench, of which the project needs none.

Their weights come from the package's own cache, or are fetched to it.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from stages.named import said

ZOOS = ("timm", "torchvision", "robustbench")
PACKAGES = {"robustbench": "git+https://github.com/RobustBench/robustbench.git"}
"""What pip is told to install, where it is not the name."""
RANDOM = {"timm": '{"pretrained": false}', "torchvision": '{"weights": null}'}
"""The arguments for random weights, where a zoo has networks without trained ones."""
COLOURS = 3  # channels of the images for which zoos know a mean


class ZooNetwork(NamedTuple):
    """A network, and the mean and std of its training images that its zoo knows, in pixels of [0, 1]."""

    network: nn.Module
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def zoo_network(
    zoo: str, name: str, arguments: dict[str, Any], *, channels: int, classes: int, trained: bool, called: str
) -> ZooNetwork:
    """A network of a zoo with its pretrained weights, or where it is not to come ``trained``, with random ones.

    ``arguments`` go to the zoo's own function: `timm.create_model`, `torchvision.models.get_model`,
    `robustbench.utils.load_model` (dataset, threat_model). A network without pretrained weights gets as many classes as
    the data have. Raises ValueError, which begins with what whoever asks has ``called`` it, where the package is not
    installed, knows no such network, or cannot fetch its weights.
    """
    shown = f"{called} {zoo}:{name}"
    try:
        importlib.import_module(zoo)
    except ImportError as error:
        raise ValueError(
            f"{shown}: {zoo} is not installed here ({error}); pip install {PACKAGES.get(zoo, zoo)}, in the environment "
            "of every node, or give the model as module:function"
        ) from error
    try:
        return _BUILDERS[zoo](name, arguments, channels, classes, trained)
    except Exception as error:  # whatever the zoo raises for a name, an argument, or a network that is not there
        without = f"; random ones are {called}.arguments '{RANDOM[zoo]}'" if zoo in RANDOM else ""
        raise ValueError(
            f"{shown} could not be made ({said(error)}): look at the name and at {called}.arguments; where its weights "
            f"could not be fetched, put them into the package's cache, or give the file by --weights{without}"
        ) from error


def _timm(name: str, arguments: dict[str, Any], channels: int, classes: int, trained: bool) -> ZooNetwork:
    import timm  # pyright: ignore[reportMissingImports] - as all zoos, only where it is installed

    pretrained = arguments.get("pretrained", trained)
    own = {} if pretrained else {"num_classes": classes, "in_chans": channels}
    network = timm.create_model(name, **{**own, **arguments, "pretrained": pretrained})
    known = getattr(network, "pretrained_cfg", None) or {}
    if channels != COLOURS or not known.get("mean"):
        return ZooNetwork(network)
    return ZooNetwork(network, tuple(known["mean"]), tuple(known["std"]))


def _torchvision(name: str, arguments: dict[str, Any], channels: int, classes: int, trained: bool) -> ZooNetwork:
    from torchvision import models  # pyright: ignore[reportMissingImports]

    weights = arguments.get("weights", "DEFAULT" if trained else None)
    own = {} if weights else {"num_classes": classes}
    network = models.get_model(name, **{**own, **arguments, "weights": weights})
    if not weights:
        return ZooNetwork(network)
    transforms = models.get_model_weights(name)[str(weights).rpartition(".")[2]].transforms()
    return ZooNetwork(network, tuple(transforms.mean), tuple(transforms.std))


def _robustbench(name: str, arguments: dict[str, Any], channels: int, classes: int, trained: bool) -> ZooNetwork:
    dataset, threat = arguments.get("dataset", "cifar10"), arguments.get("threat_model", "Linf")
    if trained:
        from robustbench.utils import load_model  # pyright: ignore[reportMissingImports]

        return ZooNetwork(load_model(name, **{**arguments, "dataset": dataset, "threat_model": threat}))
    from robustbench.model_zoo import model_dicts  # pyright: ignore[reportMissingImports]
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel  # pyright: ignore[reportMissingImports]

    return ZooNetwork(model_dicts[BenchmarkDataset(dataset)][ThreatModel(threat)][name]["model"]())


_BUILDERS: dict[str, Callable[[str, dict[str, Any], int, int, bool], ZooNetwork]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "robustbench": _robustbench,
}
