"""Names of live objects: equal for what computes the same, different for whatever decides what is computed."""

import copy
import functools
import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from types import MethodType

import named_objects
import numpy as np
import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped
from named_objects import Detector
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from stages.identity import UnnameableError, object_fingerprint


def changed(change) -> Detector:
    model = Detector()
    change(model)
    return model


def other_weights(model: Detector) -> None:
    model.linear.weight.data[0, 0] = 0.5


def other_forward(model: Detector) -> None:
    model.forward = MethodType(lambda self, images: self.linear(images), model)


CHANGES = {
    "weights": other_weights,
    "a switch": lambda model: setattr(model, "on", False),
    "a number in a list in a setting": lambda model: model.settings["thresholds"].append(0.3),
    "a function": lambda model: setattr(model, "prepare", torch.tanh),
    "a buffer that is not saved": lambda model: model.shift.fill_(0.1),
    "the forward of an instance": other_forward,
    "a hook": lambda model: model.register_forward_hook(lambda module, inputs, output: 2 * output),
    "the mode of a part": lambda model: model.linear.eval(),
    "a new attribute": lambda model: setattr(model, "temperature", np.float32(2)),
    "the type of a part": lambda model: setattr(model, "linear", nn.Sequential(model.linear)),
    "spectral norm": lambda model: spectral_norm(model.linear),
}


def test_whatever_a_model_computes_with_is_in_its_name():
    names = {what: object_fingerprint(changed(change)) for what, change in CHANGES.items()}
    assert len({object_fingerprint(Detector()), *names.values()}) == 1 + len(CHANGES)


def test_hooks_are_named_by_what_they_do_and_not_by_when_they_were_set():
    def twice(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return 2 * output

    first, second = Detector(), Detector()
    first.register_forward_hook(twice)
    nn.Linear(1, 1).register_forward_hook(twice)  # counts on
    second.register_forward_hook(twice)
    assert object_fingerprint(first) == object_fingerprint(second)


def test_copies_have_one_name_and_so_has_a_model_whose_weights_take_no_gradients():
    model = Detector()
    name = object_fingerprint(model)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), Detector(), copy.deepcopy(model)]
    copies[3].requires_grad_(False)
    assert {object_fingerprint(each) for each in copies} == {name}
    assert object_fingerprint(torch.compile(model, backend="eager")) == name


def test_a_shared_part_counts_as_if_it_were_copied():
    part = nn.Linear(2, 2)
    shared, apart = nn.ModuleList([part, part]), nn.ModuleList([part, copy.deepcopy(part)])
    assert object_fingerprint(shared) == object_fingerprint(apart)


def test_a_global_of_a_function_that_is_called_on_the_way_is_in_the_name(monkeypatch):
    names = [object_fingerprint(Detector()), object_fingerprint(named_objects.twice)]
    monkeypatch.setattr(named_objects, "STRENGTH", 0.25)
    after = [object_fingerprint(Detector()), object_fingerprint(named_objects.twice)]
    monkeypatch.setattr(named_objects, "STRENGTH", 0.5)
    monkeypatch.setattr(named_objects, "helper", lambda images: images)
    replaced = object_fingerprint(named_objects.twice)
    assert len({*names, *after, replaced}) == 5


def test_a_function_looked_up_in_a_module_is_in_the_name(monkeypatch):
    def attack(images: torch.Tensor) -> torch.Tensor:
        return named_objects.helper(images)

    name = object_fingerprint(attack)
    monkeypatch.setattr(named_objects, "STRENGTH", 0.25)
    assert object_fingerprint(attack) != name


def make(steps: int, *, step=1.0):
    def attack(images, size=step):
        return images + steps * size

    return attack


class Attack:
    __slots__ = ("steps",)

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.steps


def test_a_decorator_that_checks_types_is_not_in_the_name():
    attack = make(40)
    checked = [beartype(make(40)), jaxtyped(typechecker=beartype)(make(40))]
    assert {object_fingerprint(each) for each in checked} == {object_fingerprint(attack)}


def cached(steps: int):
    return functools.lru_cache(make(steps))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "maker",
    [
        make,
        lambda steps: make(1, step=steps),
        Attack,
        lambda steps: Attack(steps).__call__,
        lambda steps: functools.partial(make(1), steps),
        lambda steps: torch.no_grad()(make(steps)),
        lambda steps: functools.wraps(make)(lambda images: make(steps)(images)),
        cached,
        lambda steps: OrderedDict(steps=steps),
        lambda steps: {"a", "b", steps},
        lambda steps: np.random.default_rng(steps),
        lambda steps: torch.Generator().manual_seed(steps),
        lambda steps: np.array([steps, None], dtype=object),
        lambda steps: torch.full((2,), steps, dtype=torch.bfloat16),
        lambda steps: torch.jit.script(nn.Dropout(1 / (steps + 1))),
    ],
)
def test_what_was_put_into_it_names_whatever_is_made(maker):
    names = [object_fingerprint(maker(steps)) for steps in (40, 40, 41)]
    assert names[0] == names[1] != names[2]


def generator():
    yield 1


class Secretive:
    def __reduce__(self):
        raise ValueError("not today")


def test_what_cannot_be_recognised_is_refused_with_its_place(tmp_path):
    model = Detector()
    model.settings["source"] = generator()
    with pytest.raises(UnnameableError, match=r"Detector\.settings\.source is a generator"):
        object_fingerprint(model)
    with (tmp_path / "open").open("w") as file, pytest.raises(UnnameableError, match="TextIOWrapper"):
        object_fingerprint([file])
    with pytest.raises(UnnameableError, match=r"list\[1\] is a Secretive"):
        object_fingerprint([1, Secretive()])
    with pytest.raises(UnnameableError, match="on meta"):
        object_fingerprint(nn.Linear(2, 2, device="meta"))
    with pytest.raises(UnnameableError, match="nested too deeply"):
        object_fingerprint(functools.reduce(lambda inner, _: [inner], range(100_000), []))
    with pytest.raises(UnnameableError, match="BytesIO"):
        object_fingerprint(io.BytesIO())


def test_locks_and_devices_say_nothing():
    model, other = Detector(), Detector()
    model.lock, other.lock = threading.Lock(), threading.Lock()  # pyright: ignore
    model.device, other.device = torch.device("cpu"), torch.device("cuda", 1)  # pyright: ignore
    assert object_fingerprint(model) == object_fingerprint(other)


def test_objects_that_refer_to_themselves_have_a_name():
    model, other = Detector(), Detector()
    model.settings["owner"], other.settings["owner"] = [model], [other]
    assert object_fingerprint(model) == object_fingerprint(other) != object_fingerprint(Detector())


def test_a_name_is_the_same_in_a_process_that_compiles_the_module_and_in_one_that_reads_it_compiled(tmp_path):
    shutil.copy(named_objects.__file__, tmp_path)
    script = "import named_objects, stages.identity as i; print(i.object_fingerprint(named_objects.Detector()))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "PYTHONHASHSEED": "7"}

    def name() -> str:
        return subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout

    compiled = name()
    assert list(tmp_path.glob("__pycache__/named_objects.*.pyc"))
    assert name() == compiled
