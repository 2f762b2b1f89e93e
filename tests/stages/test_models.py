"""A classifier of anybody's, brought by import path, from a zoo or as weights, and made again for a saved model."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from stages.models import ModelConfig, bring_model, rebuild_model
from stages.nets.architectures import ClassifierConfig
from stages.nets.cnn import CNN
from stages.nets.interface import Interface

INPUTS = {"channels": 3, "size": 4, "classes": 5, "mean": (0.3,) * 3, "std": (0.4,) * 3}
IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """A linear network, whose answer holds its logits as told."""

    def __init__(self, answer: Callable[[Tensor], object] = lambda logits: logits, classes: int = 5) -> None:
        super().__init__()
        self.linear, self.answer = nn.Linear(48, classes), answer

    def forward(self, images: Tensor) -> object:
        return self.answer(self.linear(images.flatten(1)))


def bring(config: ModelConfig, own: ClassifierConfig | None = None, **inputs: Any) -> tuple[nn.Module, ModelConfig]:
    return bring_model(config, own or ClassifierConfig(), {**INPUTS, **inputs})


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An importable module, my_models, to put functions into."""
    module = types.ModuleType("my_models")
    vars(module).update(build=Linear, Linear=Linear)
    monkeypatch.setitem(sys.modules, "my_models", module)
    return module


def test_a_network_is_built_by_import_path_with_arguments_and_put_into_eval_mode(module):
    vars(module)["sized"] = lambda classes, *, bias=True: nn.Sequential(nn.Flatten(), nn.Linear(48, classes, bias))
    model, known = bring(ModelConfig(name="my_models:sized", arguments='{"classes": 5, "bias": false}'))
    assert model(IMAGES).shape == (2, 5)
    assert model[1].bias is None  # pyright: ignore[reportIndexIssue]
    assert not model.training
    assert known.keywords == {"classes": 5, "bias": False}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("my_modules:build", "No module named 'my_modules'"),
        ("my_models:make", "has no attribute 'make'"),
        ("my_models:number", "'my_models:number' is no function, an object of type int: name a function that returns"),
        ("my_models:network", "'my_models:network' is a network, an object of type Identity: name a function that"),
        ("my_models:needy", "is called without arguments, but missing a required argument: 'depth'.*--model.arguments"),
        ("my_models:name", "returned an object of type str"),
        ("my_models:broken", r"raised an error instead of returning a network \(FileNotFoundError: .*weights.pt"),
        ("my_models:leaving", r"raised an error instead of returning a network \(SystemExit: 2"),
    ],
)
def test_a_function_that_builds_no_network_is_refused(module, path: str, found: str):
    vars(module).update(number=5, network=nn.Identity(), needy=lambda depth: nn.Identity(), name=lambda: "resnet")
    vars(module).update(broken=lambda: torch.load("weights.pt"), leaving=lambda: sys.exit(2))
    with pytest.raises(ValueError, match=found) as raised:
        bring(ModelConfig(name=path))
    assert str(raised.value).startswith(f"--model {path!r}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "m:f", "arguments": "depth=3"}, "no JSON"),
        ({"name": "m:f", "arguments": "[3]"}, "must be an object of JSON"),
        ({"name": "m:f", "mean": (0.5,)}, "give both"),
        ({"name": "m:f", "mean": (0.5,), "std": (0.0,)}, "std above 0"),
        ({"mean": (0.5,), "std": (0.5,)}, "name it by model"),
        ({"name": "m:f", "part": "ema"}, "name that by weights"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        (lambda logits: {"features": logits[:, :3], "logits": logits}, "logits"),
        (lambda logits: SimpleNamespace(logits=logits, loss=None), "logits"),
        (lambda logits: (logits, logits[:, :3]), "0"),
        (lambda logits: [logits[:, :3], logits], "1"),
        (lambda logits: {"out": logits, "aux": logits[:, :, None]}, "out"),
    ],
    ids=["a dict", "an object", "a tuple", "a list", "a dict with names of its own"],
)
def test_the_logits_are_found_in_whatever_a_network_returns(module, answer, key):
    vars(module)["build"] = lambda: Linear(answer)
    model, known = bring(ModelConfig(name="my_models:build"))
    logits = model(IMAGES)
    assert known.output == key
    assert torch.equal(logits, model.get_submodule("network.linear")(IMAGES.flatten(1)))
    again = rebuild_model(known, ClassifierConfig(), INPUTS)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(IMAGES), logits)


def test_of_two_parts_that_could_be_logits_one_must_be_named(module):
    vars(module)["build"] = lambda: Linear(lambda logits: {"head": logits, "other": 2 * logits})
    with pytest.raises(ValueError, match=r"returns a dict in which .* more than one, .* by --model.output"):
        bring(ModelConfig(name="my_models:build"))
    model, _ = bring(ModelConfig(name="my_models:build", output="other"))
    assert torch.equal(model(IMAGES), 2 * model.get_submodule("network.linear")(IMAGES.flatten(1)))


def test_normalisation_is_put_inside(module):
    vars(module)["build"] = Linear
    model, known = bring(ModelConfig(name="my_models:build", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
    mean, std = (torch.tensor(values)[:, None, None] for values in (known.mean, known.std))
    assert torch.equal(model(IMAGES), model.get_submodule("network")((IMAGES - mean) / std))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_come_back_from_a_file(tmp_path: Path, suffix: str):
    trained = CNN(1, 8, 10, (0.1,), (0.2,)).state_dict()
    path = tmp_path / f"weights.{suffix}"
    safetensors.torch.save_file(trained, path) if suffix == "safetensors" else torch.save(trained, path)
    shape = {"channels": 1, "size": 8, "classes": 10, "mean": (0.3,), "std": (0.4,)}
    model, known = bring(ModelConfig(weights=str(path)), **shape)
    assert all(torch.equal(model.state_dict()[name], trained[name]) for name in trained)
    assert known == ModelConfig(), "what builds the network again names a file"


def test_a_checkpoint_of_data_parallel_is_read_and_its_average_by_name(module, tmp_path: Path):
    vars(module)["build"] = Linear
    plain, average = Linear(), Linear()
    wrapped = {f"module.{name}": value.half() for name, value in plain.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "ema": average.state_dict()}, tmp_path / "both.pt")
    with pytest.raises(ValueError, match=r"under 'state_dict', 'ema': name the one that you mean by --model.part"):
        bring(ModelConfig(name="my_models:build", weights=str(tmp_path / "both.pt")))
    for part, network in (("state_dict", plain.half().float()), ("ema", average)):
        model, _ = bring(ModelConfig(name="my_models:build", weights=str(tmp_path / "both.pt"), part=part))
        assert torch.equal(model(IMAGES), network(IMAGES))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="holds no weights under 'mean'; it has some under 'state_dict', 'ema'"):
        bring(ModelConfig(name="my_models:build", weights=str(tmp_path / "both.pt"), part="mean"))


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    state = CNN(1, 12, 10, (0.1,), (0.2,)).state_dict()
    state["extra.weight"] = state.pop("conv2.weight")
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    shape = {"channels": 1, "size": 8, "classes": 10, "mean": (0.3,), "std": (0.4,)}
    with pytest.raises(ValueError, match=r"--weights .* does not fit the network") as raised:
        bring(ModelConfig(weights=str(tmp_path / "weights.safetensors")), **shape)
    message = str(raised.value)
    assert "name the network that they were trained in with --classifier.architecture or --model" in message
    assert "1 missing (the first is conv2.weight)" in message
    assert "fc1.weight with float32 [128, 1024] for float32 [128, 256])" in message


def fake_timm() -> types.ModuleType:
    """timm as far as it is asked, and without a network."""
    timm = types.ModuleType("timm")

    def create_model(name: str, *, pretrained: bool, num_classes: int = 5, in_chans: int = 3) -> nn.Module:
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        if pretrained:
            raise OSError("we couldn't connect to the hub")
        network: Any = Linear(classes=num_classes)
        network.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
        return network

    vars(timm)["create_model"] = create_model
    return timm


def fake_torchvision() -> types.ModuleType:
    torchvision = types.ModuleType("torchvision")
    statistics = SimpleNamespace(mean=[0.4, 0.4, 0.4], std=[0.1, 0.1, 0.1])

    def get_model(name: str, *, weights: str | None, num_classes: int = 7) -> nn.Module:
        return Linear(classes=num_classes)

    known = {"DEFAULT": SimpleNamespace(transforms=lambda: statistics)}
    vars(torchvision)["models"] = SimpleNamespace(get_model=get_model, get_model_weights=lambda name: known)
    return torchvision


def test_a_timm_network_has_timms_own_normalisation_inside_and_as_many_classes_as_the_data(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    model, known = bring(ModelConfig(name="timm:tiny", arguments='{"pretrained": false}'))
    assert isinstance(model, Interface)
    assert (known.mean, known.std) == ((0.5,) * 3, (0.2,) * 3)
    assert torch.equal(model(IMAGES), model.network((IMAGES - 0.5) / 0.2))
    assert bring(ModelConfig(name="timm:tiny", arguments='{"pretrained": false}'), classes=9)[0](IMAGES).shape == (2, 9)
    own, _ = bring(ModelConfig(name="timm:tiny", arguments='{"pretrained": false}', mean=(0.0,) * 3, std=(1.0,) * 3))
    assert torch.equal(own(IMAGES), own.get_submodule("network")(IMAGES))


def test_random_weights_are_the_same_each_time_and_draw_nothing_from_the_callers(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    random = ModelConfig(name="timm:tiny", arguments='{"pretrained": false}')
    before = torch.random.get_rng_state()
    first, _ = bring(random)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(bring(random)[0](IMAGES), first(IMAGES))


def test_a_network_of_a_zoo_takes_a_users_weights_and_is_made_again_without_any(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    trained = Linear()
    torch.save(trained.state_dict(), tmp_path / "tuned.pt")
    model, known = bring(ModelConfig(name="timm:tiny", weights=str(tmp_path / "tuned.pt")))
    assert torch.equal(model(IMAGES), trained((IMAGES - 0.5) / 0.2))  # pyright: ignore[reportArgumentType]
    again = rebuild_model(known, ClassifierConfig(), INPUTS)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(IMAGES), model(IMAGES))


def test_a_torchvision_network_with_pretrained_weights_has_their_normalisation_inside(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", fake_torchvision())
    model, known = bring(ModelConfig(name="torchvision:resnet18"))
    assert (known.mean, model(IMAGES).shape) == ((0.4,) * 3, (2, 7))
    random, known = bring(ModelConfig(name="torchvision:resnet18", arguments='{"weights": null}'))
    assert (known.mean, random(IMAGES).shape) == ((), (2, 5))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:large", r"timm:large could not be made \(RuntimeError: Unknown model"),
        ("timm:tiny", r"could not be made \(OSError: we couldn't connect .*put them into the package's cache"),
        ("timm:tiny", r"random ones are --model.arguments '\{\"pretrained\": false\}'"),
        (
            "robustbench:Standard",
            r"robustbench is not installed here .*pip install git\+https://github.com/RobustBench",
        ),
    ],
)
def test_what_a_zoo_has_not_is_refused_with_what_to_do(name, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    monkeypatch.setitem(sys.modules, "robustbench", None)  # so that importing it fails
    with pytest.raises(ValueError, match=message) as raised:
        bring(ModelConfig(name=name))
    assert str(raised.value).startswith(f"--model {name}")
