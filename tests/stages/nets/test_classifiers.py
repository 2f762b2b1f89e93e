"""Building the base classifier, by name and by import path, and loading its weights."""

import math
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from stages.nets.classifiers import ClassifierConfig, build_classifier
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
        ("my_models:number", "5 is not a callable object"),
        ("my_models:needy", "missing a required argument: 'depth'"),
        ("my_models:name", "returned an object of type str"),
    ],
)
def test_a_factory_that_builds_no_network_is_refused(module: types.ModuleType, factory: str, found: str):
    vars(module).update(number=5, needy=lambda depth: nn.Identity(), name=lambda: "resnet")
    with pytest.raises(ValueError, match=found) as raised:
        build(ClassifierConfig(factory=factory))
    assert factory in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factory": "my_models"}, "it must be module:function"),
        ({"factory": ":build"}, "it must be module:function"),
        ({"batch": 0}, "classifier.batch is 0"),
        ({"threads": 0}, "classifier.threads 0"),
        ({"learning_rate": 0.0}, "classifier.learning_rate is 0.0"),
        ({"learning_rate": math.nan}, "classifier.learning_rate is nan"),
        ({"weight_decay": -1.0}, "classifier.weight_decay -1.0"),
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
    with pytest.raises(ValueError, match="do not fit the network") as raised:
        build(ClassifierConfig(weights=str(tmp_path / "weights.safetensors")))
    message = str(raised.value)
    assert "1 missing (the first is conv2.weight)" in message
    assert "1 unexpected (the first is extra.weight)" in message
    assert "1 of another shape (fc1.weight with [128, 1024] for [128, 256])" in message


class Touch:
    """Unpickled by a careless reader, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.path,)


def write_nothing(path: Path) -> None:
    """No file at all."""


def write_text(path: Path) -> None:
    path.write_text("weights")


def write_list(path: Path) -> None:
    torch.save([torch.zeros(2)], path)


def write_nested(path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"fc": torch.zeros(2)}}, path)


def write_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(Touch(path.parent / "touched"), protocol=2))


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (write_nothing, "weights.pt", "is no file"),
        (write_text, "weights.pt", "cannot be read"),
        (write_text, "weights.safetensors", "cannot be read"),
        (write_list, "weights.pt", "hold a list, not a state dict"),
        (write_nested, "weights.pt", "not a state dict of names and tensors: save model.state_dict"),
        (write_code, "weights.pt", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(
    tmp_path: Path, write: Callable[[Path], None], name: str, message: str
):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        build(ClassifierConfig(weights=str(tmp_path / name)))
    assert not (tmp_path / "touched").exists()
