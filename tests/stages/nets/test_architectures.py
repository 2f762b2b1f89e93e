"""Building the base classifier, by name and by import path, and loading its weights."""

import math
import sys
import types
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from stages.nets.architectures import ClassifierConfig, build_classifier
from stages.nets.cnn import CNN
from stages.nets.resnet import ResNet18
from stages.nets.wrn import WideResNet


def build(config: ClassifierConfig, size: int = 8) -> nn.Module:
    return build_classifier(config, channels=1, size=size, classes=10, mean=(0.3,), std=(0.4,))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An importable module, my_models, to put factories into."""
    module = types.ModuleType("my_models")
    monkeypatch.setitem(sys.modules, "my_models", module)
    return module


@pytest.mark.parametrize(
    ("architecture", "kind"), [("cnn", CNN), ("resnet18-narrow", ResNet18), ("wrn-28-10", WideResNet)]
)
def test_a_named_architecture_is_built_in_eval_mode(architecture, kind: type):
    classifier = build(ClassifierConfig(architecture=architecture))
    assert isinstance(classifier, kind)
    assert not classifier.training


def test_any_network_is_built_by_import_path(module: types.ModuleType):
    vars(module)["build"] = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).train()
    classifier = build(ClassifierConfig(factory="my_models:build"))
    assert classifier(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert not classifier.training


@pytest.mark.parametrize(
    ("factory", "found"),
    [
        ("my_modules:build", "No module named 'my_modules'"),
        ("my_models:make", "has no attribute 'make'"),
        ("my_models:number", "'my_models:number' is no function, an object of type int: name a function that takes no"),
        ("my_models:network", "'my_models:network' is a network, an object of type Identity: name a function that"),
        ("my_models:needy", "missing a required argument: 'depth'"),
        ("my_models:name", "returned an object of type str"),
        ("my_models:broken", r"raised an error instead of returning a network \(FileNotFoundError: .*weights.pt"),
        ("my_models:leaving", r"raised an error instead of returning a network \(SystemExit: 2"),
    ],
)
def test_a_factory_that_builds_no_network_is_refused(module: types.ModuleType, factory: str, found: str):
    vars(module).update(number=5, network=nn.Identity(), needy=lambda depth: nn.Identity(), name=lambda: "resnet")
    vars(module).update(broken=lambda: torch.load("weights.pt"), leaving=lambda: sys.exit(2))
    with pytest.raises(ValueError, match=found) as raised:
        build(ClassifierConfig(factory=factory))
    assert factory in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factory": "my_models"}, "it must be module:function"),
        ({"factory": ":build"}, "it must be module:function"),
        ({"batch": 0}, "classifier.batch is 0"),
        ({"threads": 0}, "classifier.threads is 0; it must be at least 1"),
        ({"learning_rate": 0.0}, "classifier.learning_rate is 0.0"),
        ({"learning_rate": math.nan}, "classifier.learning_rate is nan"),
        ({"weight_decay": -1.0}, "classifier.weight_decay -1.0"),
        ({"label_smoothing": 1.0}, r"classifier\.label_smoothing is 1; it must lie in \[0, 1\)"),
        ({"epochs": 0}, "classifier.epochs is 0; it must be at least 1"),
        ({"epochs": -1, "factory": "my_models:build"}, "classifier.epochs is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ClassifierConfig(**settings)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_come_back_from_a_file(tmp_path: Path, suffix: str):
    trained = CNN(1, 8, 10, (0.1,), (0.2,)).state_dict()
    path = tmp_path / f"weights.{suffix}"
    safetensors.torch.save_file(trained, path) if suffix == "safetensors" else torch.save(trained, path)
    loaded = build(ClassifierConfig(weights=str(path))).state_dict()
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    state = CNN(1, 12, 10, (0.1,), (0.2,)).state_dict()
    state["extra.weight"] = state.pop("conv2.weight")
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="does not fit the network") as raised:
        build(ClassifierConfig(weights=str(tmp_path / "weights.safetensors")))
    message = str(raised.value)
    assert "classifier.weights" in message
    assert "name the network that they were trained in with classifier.architecture" in message
    assert "1 missing (the first is conv2.weight)" in message
    assert "1 unexpected (the first is extra.weight)" in message
    assert "fc1.weight with float32 [128, 1024] for float32 [128, 256])" in message
