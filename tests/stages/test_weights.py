"""Weights as people keep them: loaded to the bit, or refused with what differs."""

import argparse
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from stages.weights import load_weights, save_weights

State = dict[str, Tensor]


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            OrderedDict(stem=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2), flat=nn.Flatten(), head=nn.Linear(8, 3))
        )


GIVEN = network(1).state_dict()


def load(path: Path, into: nn.Module | None = None) -> State:
    into = into or network()
    load_weights(into, path, name=f"weights {path.name}", remedy="name another network")
    return into.state_dict()


def prefixed(*parts: str) -> State:
    return {".".join([*parts, name]): value for name, value in GIVEN.items()}


WAYS: dict[str, Callable[[], Any]] = {
    "as they are": lambda: GIVEN,
    "module.": lambda: prefixed("module"),
    "_orig_mod.": lambda: prefixed("_orig_mod"),
    "module._orig_mod.": lambda: prefixed("module", "_orig_mod"),
    "a compiled part": lambda: {name.replace("head", "head._orig_mod"): value for name, value in GIVEN.items()},
    "a parallel part": lambda: {name.replace("head", "head.module"): value for name, value in GIVEN.items()},
    "module.module.": lambda: prefixed("module", "module"),
    "Lightning": lambda: {"epoch": 3, "state_dict": prefixed("model"), "hparams": {"lr": 0.1}},
    "nested": lambda: {"epoch": 3, "state_dict": GIVEN, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "nested twice": lambda: {"model": {"state_dict": prefixed("module")}},
    "ema": lambda: {"ema": GIVEN},
    "averaged": lambda: {"n_averaged": torch.tensor(3), **prefixed("module")},
    "with arguments": lambda: {"net": GIVEN, "args": argparse.Namespace(lr=0.1), "acc": np.float64(0.9)},
    "other parts": lambda: {"model": GIVEN, "criterion": {"weight": torch.ones(3)}},
    "without counters": lambda: {name: value for name, value in GIVEN.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_loaded_as_people_keep_them(way: str, tmp_path: Path):
    torch.save(WAYS[way](), tmp_path / "weights.pt")
    loaded = load(tmp_path / "weights.pt")
    kept = {name for name in GIVEN if "num_batches" not in name}
    assert all(torch.equal(loaded[name], GIVEN[name]) for name in kept)
    assert not torch.equal(loaded["stem.weight"], network().state_dict()["stem.weight"])


def test_a_network_that_was_wrapped_takes_weights_that_were_not(tmp_path: Path):
    save_weights(GIVEN, tmp_path / "weights.safetensors")
    for wrapped in (nn.DataParallel(network()), nn.ModuleDict({"model": network()})):
        loaded = load(tmp_path / "weights.safetensors", into=wrapped)
        assert [torch.equal(one, other) for one, other in zip(loaded.values(), GIVEN.values(), strict=True)] == [
            True
        ] * len(GIVEN)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_those_of_the_network(dtype: torch.dtype, tmp_path: Path):
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in GIVEN.items()}
    save_weights(given, tmp_path / "weights.safetensors")
    loaded = load(tmp_path / "weights.safetensors")
    assert all(torch.equal(loaded[name], value.to(loaded[name].dtype)) for name, value in given.items())
    assert loaded["stem.weight"].dtype == torch.float32


def test_the_format_is_told_by_the_content_not_by_the_name(tmp_path: Path):
    safetensors.torch.save_file(GIVEN, tmp_path / "weights.bin")
    torch.save(GIVEN, tmp_path / "weights.safetensors")
    for name in ("weights.bin", "weights.safetensors"):
        assert torch.equal(load(tmp_path / name)["stem.weight"], GIVEN["stem.weight"])


def without(name: str) -> State:
    return {key: value for key, value in GIVEN.items() if key != name}


MISFITS: dict[str, tuple[Callable[[], Any], str]] = {
    "a missing tensor": (
        lambda: without("head.bias"),
        r"1 missing \(the first is head.bias\), 0 unexpected \(none\), .* another shape or type \(none\): name another",
    ),
    "missing behind module.": (
        lambda: {f"module.{name}": value for name, value in without("head.bias").items()},
        r"\d+ missing .*\d+ unexpected \(the first is module.head.weight\)",
    ),
    "one too many": (lambda: {**GIVEN, "tail.bias": torch.ones(1)}, r"1 unexpected \(the first is tail.bias\)"),
    "another shape": (
        lambda: {**GIVEN, "head.bias": torch.ones(5)},
        r"1 of another shape or type \(head.bias with float32 \[5\] for float32 \[3\]\)",
    ),
    "quantised": (
        lambda: {**GIVEN, "head.bias": torch.ones(3, dtype=torch.int8)},
        r"head.bias with int8 \[3\] for float32 \[3\]",
    ),
    "complex": (
        lambda: {**GIVEN, "head.bias": torch.ones(3, dtype=torch.complex64)},
        "head.bias with complex64",
    ),
    "nested and another": (lambda: {"model": without("head.bias")}, "those under 'model'. does not fit .* 1 missing"),
    "two that fit": (
        lambda: {"model": GIVEN, "ema": network(2).state_dict()},
        "more than one set of weights that fits, under 'model', 'ema': name the one",
    ),
    "a name with and without its wrapper": (
        lambda: {**GIVEN, **prefixed("module")},
        r"9 unexpected \(the first is module.head.bias\)",
    ),
    "all of one part elsewhere": (
        lambda: {name.replace("head", "tail"): value for name, value in GIVEN.items()},
        r"2 missing \(the first is head.bias\), 2 unexpected \(the first is tail.bias\)",
    ),
    "NaN": (
        lambda: {**GIVEN, "head.bias": torch.tensor([0, math.nan, 0])},
        r"holds NaN or infinity, .* in 1 of its tensors \(the first is head.bias\): its training diverged",
    ),
    "NaN of a diverged BatchNorm": (
        lambda: {**GIVEN, "norm.running_var": GIVEN["norm.running_var"] * math.nan},
        r"NaN or infinity, .* in 1 of its tensors \(the first is norm.running_var\)",
    ),
    "too large for float32": (
        lambda: {**GIVEN, "head.bias": torch.full((3,), 1e300, dtype=torch.float64)},
        "holds NaN or infinity, or what is too large for the network's precision",
    ),
    "a list": (lambda: [torch.zeros(2)], "holds no names with tensors: save the network's state_dict"),
    "a tensor": (lambda: torch.zeros(2), "holds no names with tensors"),
    "nothing": (dict, "holds no names with tensors"),
    "settings": (lambda: {"lr": 0.1, "args": {"depth": 2}}, "holds no names with tensors"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_do_not_fit_are_refused_with_what_differs(name: str, tmp_path: Path):
    write, message = MISFITS[name]
    torch.save(write(), tmp_path / "weights.pt")
    into = network()
    with pytest.raises(ValueError, match=f"^weights weights.pt.*{message}"):
        load(tmp_path / "weights.pt", into=into)
    assert torch.equal(into.state_dict()["stem.weight"], network().state_dict()["stem.weight"])


class Touch:
    """Unpickled by a careless reader, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.path,)


def cut(path: Path, writer: Callable[[Path], None]) -> None:
    writer(path)
    path.write_bytes(path.read_bytes()[:-20])


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: None, "is no file"),
    "a folder": (lambda path: path.mkdir(), "is no file"),
    "empty": (lambda path: path.touch(), "is empty: copy or download it again"),
    "text": (lambda path: path.write_text("weights"), r"cannot be read \(.*7 bytes\)"),
    "a pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"),
        "only a pointer of git-lfs, .*: run git lfs pull",
    ),
    "a web page": (lambda path: path.write_text("\n<!DOCTYPE html><title>Sign in"), "is a web page"),
    "cut safetensors": (
        lambda path: cut(path, lambda whole: save_weights(GIVEN, whole)),
        "cannot be read .*look whether all of it has arrived",
    ),
    "cut torch": (lambda path: cut(path, lambda whole: torch.save(GIVEN, whole)), "cannot be read"),
    "code": (lambda path: path.write_bytes(pickle.dumps(Touch(path.parent / "touched"), protocol=2)), "cannot be read"),
    "a network": (lambda path: torch.save(network(), path), "holds a .*Sequential, which is not read as it could run"),
    "a script": (
        lambda path: torch.jit.save(torch.jit.script(network()), path),
        "cannot be read .*state_dict",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_holds_no_weights_is_named_with_what_to_do(name: str, tmp_path: Path):
    damage, message = DAMAGED[name]
    path = tmp_path / "weights.pt"
    damage(path)
    with pytest.raises(ValueError, match=f"^weights weights.pt .*{message}") as raised:
        load(path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "touched").exists()
