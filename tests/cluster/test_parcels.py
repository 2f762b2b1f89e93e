"""What is sent to workers arrives as it was, or is refused with its reason."""

import importlib.util
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from cluster.parcels import Parcel, ParcelError, pack

IMAGES = torch.linspace(0, 1, 2 * 64).reshape(2, 1, 8, 8)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))


class Scripted(nn.Module):
    """A module with TorchScript inside: a scripted part, and a scripted function."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.script(network())
        self.activation = torch.jit.script(twice)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.activation(self.inner(images))


def twice(values: torch.Tensor) -> torch.Tensor:
    return 2 * values


class Locked(nn.Module):
    """A module that knows how to be pickled without its lock."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 3))
        self.lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.lock = threading.Lock()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self.lock:
            return images.flatten(1) @ self.weight


def parametrized() -> nn.Module:
    model = network()
    parametrizations.spectral_norm(model[0])
    parametrizations.weight_norm(model[2])
    return model


def parametrized_with_a_state_of_its_own() -> nn.Module:
    model = Locked()
    parametrize.register_parametrization(model, "weight", nn.Softplus())
    return model


def with_hooks() -> nn.Module:
    """Weights that are computed by hooks of the older kind, once they were used with gradients."""
    model = network()
    prune.l1_unstructured(model[0], "weight", 0.5)
    model[2].register_forward_hook(lambda *given: 1.5 * given[2])
    model(IMAGES)
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "spectral_norm and weight_norm": parametrized,
    "a parametrization of a module with __getstate__": parametrized_with_a_state_of_its_own,
    "pruned, with a lambda for a hook": with_hooks,
    "torch.jit.script": lambda: torch.jit.script(network()),
    "torch.jit.trace": lambda: torch.jit.trace(network().eval(), IMAGES),
    "TorchScript inside": Scripted,
}
# Of all of TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")

READER = """
import pickle, sys, torch
for parcel, images, expected in pickle.load(sys.stdin.buffer):
    assert torch.equal(pickle.loads(parcel)(images), expected)
print("read")
"""


def content(parcel: Parcel) -> bytes:
    assert not parcel.arrays
    return bytes(parcel.content)


def test_models_that_pickle_refuses_answer_in_another_process_as_in_this_one() -> None:
    sent = []
    for name, build in MODELS.items():
        model = build().eval()
        expected = model(IMAGES).detach()
        sent.append((content(pack(model, name)), IMAGES, expected))
        assert torch.equal(model(IMAGES), expected), name
    reader = [sys.executable, "-c", READER]
    path = {"PYTHONPATH": ":".join((str(Path(__file__).parent), str(Path(__file__).parents[2])))}
    done = subprocess.run(reader, input=pickle.dumps(sent), capture_output=True, env=path, check=False)
    assert done.stdout == b"read\n", done.stderr.decode()


def test_arrays_lie_beside_the_parcel_and_are_not_copied() -> None:
    weights = np.arange(1000.0)
    parcel = pack({"weights": weights}, "the weights")
    assert len(parcel.content.raw()) < 200
    assert np.shares_memory(parcel.open()["weights"], weights)


def holding(thing: object) -> nn.Module:
    model = network()
    vars(model[0])["held"] = thing
    return model


class Forgetful:
    """Pickled without a word, and not to be read again."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple:
        return Forgetful, ()


def closing_over(lock: object) -> Callable[[torch.Tensor], torch.Tensor]:
    def attack(images: torch.Tensor) -> torch.Tensor:
        return images if lock else images.flip(0)

    return attack


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (holding(threading.Lock()), r"0\.held: TypeError: cannot pickle '_thread.lock' object"),
        (holding(number for number in range(3)), r"0\.held: TypeError: cannot pickle 'generator' object"),
        (holding(Forgetful("me")), r"0\.held: TypeError: .*missing 1 required positional argument"),
        (closing_over(threading.Lock()), r"lock: TypeError: cannot pickle '_thread.lock' object"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_its_place_and_reason(value: object, reason: str) -> None:
    with pytest.raises(ParcelError, match=f"the model cannot be sent to worker processes: {reason}"):
        pack(value, "the model")


SOURCE = """
from torch import nn
FACTOR = 3
def scaled(values): return FACTOR * values
class Model(nn.Module):
    def forward(self, images): return scaled(images.flatten(1)[:, :3])
"""


@pytest.mark.parametrize("name", ["loaded_from_a_file", "json"])
def test_code_of_a_module_that_workers_would_not_find_goes_with_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that was loaded by its path; also where an import of its name would find another."""
    (tmp_path / "source.py").write_text(SOURCE)
    spec = importlib.util.spec_from_file_location(name, tmp_path / "source.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    parcel = content(pack(module.Model(), "the model"))
    assert name not in cloudpickle.list_registry_pickle_by_value()
    monkeypatch.delitem(sys.modules, name)
    assert torch.equal(pickle.loads(parcel)(IMAGES), 3 * IMAGES.flatten(1)[:, :3])
