"""Weights in files: written so that whoever may read the folder may read them, and read as people keep them.

That is: safetensors or torch.save, alone or within a checkpoint, under the names that DistributedDataParallel and
torch.compile give, in whatever precision. Nothing is left out or guessed: what does not fit is refused, with what
differs.
"""

import argparse
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

WRAPPERS = ("module", "_orig_mod")  # what DistributedDataParallel and torch.compile put into names
COUNTER = "num_batches_tracked"  # of BatchNorm: plays no part in eval mode, and older checkpoints lack it
AVERAGED = "n_averaged"  # how often an AveragedModel has averaged
NUMPY_SCALAR = np.float64(0).__reduce__()[0]
# What checkpoints hold beside tensors, and what unpickling it can't run code by
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
    *((NUMPY_SCALAR, f"{package}.multiarray.scalar") for package in ("numpy._core", "numpy.core")),
]


def pack_weights(weights: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file's bytes; equal weights make equal bytes, with one entry of metadata at most."""
    return safetensors.torch.save({name: each.detach().cpu().contiguous() for name, each in weights.items()}, metadata)


def unpack_weights(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights and metadata of what `pack_weights` made. Raises ValueError for other bytes."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return safetensors.torch.load(content), header.get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, MemoryError) as error:
        raise ValueError(f"these {len(content)} bytes are no safetensors file: {error}") from error


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, with the permissions of any new file there, which the library's own lacks."""
    path.write_bytes(pack_weights(weights))


def load_weights(network: nn.Module, path: Path, *, name: str, remedy: str, part: str | None = None) -> None:
    """Load a file of weights into a network. Raises ValueError as `read_weights` and `place_weights` do."""
    place_weights(network, read_weights(path, name=name), name=name, remedy=remedy, part=part)


def place_weights(network: nn.Module, content: object, *, name: str, remedy: str, part: str | None = None) -> None:
    """Load what a file of weights holds into a network whose names and shapes they have.

    Of the state dicts in it, the one that fits is taken, or that under the key ``part``. Prefixes and suffixes of
    wrappers don't matter. Raises ValueError, which begins with ``name`` and ends with ``remedy``, where the weights
    don't fit or are not finite, or where two sets of them do.
    """
    found = [each for each in _states(content) if part in (None, each[0])]
    if part and not found:
        known = ", ".join(repr(where) for where, _ in _states(content))
        raise ValueError(f"{name} holds no weights under {part!r}; it has some under {known or 'no key'}")
    if not found:
        raise ValueError(f"{name} holds no names with tensors: save the network's state_dict() alone")
    expected = network.state_dict()
    placed = {where: state for where, each in found if (state := _placed(each, expected)) is not None}
    if len(placed) > 1:
        raise ValueError(
            f"{name} holds more than one set of weights that fits, under {', '.join(map(repr, placed))}: name the one "
            "that you mean by --model.part"
        )
    if not placed:
        where, closest = max(found, key=lambda each: len(each[1].keys() & expected.keys()))
        inside = f" (those under {where!r})" if where else ""
        raise ValueError(f"{name}{inside} does not fit the network: {_difference(closest, expected)}: {remedy}")
    weights = next(iter(placed.values()))
    spoilt = [each for each, _ in network.named_parameters() if not _is_finite(weights[each], expected[each])]
    # a buffer may hold infinity, such as an attention mask
    spoilt += [name for name in weights if name not in spoilt and bool(weights[name].isnan().any())]
    if spoilt:
        raise ValueError(
            f"{name} holds NaN or infinity, or what is too large for the network's precision, in {len(spoilt)} of its "
            f"tensors ({_first(spoilt)}): its training diverged; take an earlier checkpoint, or train again"
        )
    network.load_state_dict(weights)


def read_weights(path: Path, *, name: str) -> object:
    """What a safetensors file holds, or one of torch.save, of which no code is run.

    Raises ValueError, which begins with ``name``, where there is no such file or it can't be read.
    """
    if damage := damage_of(path):
        raise ValueError(f"{name} {damage}")
    try:
        with path.open("rb") as file:
            if file.read(9)[8:] == b"{":  # behind the length of the header, which is JSON
                return safetensors.torch.load_file(path)
            file.seek(0)
            with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of TorchScript archives, which are then refused
                return torch.load(file, map_location="cpu", weights_only=True)  # the file, as its name may mislead
    except Exception as error:  # damaged bytes lead the readers into errors of a dozen types
        raise ValueError(
            f"{name} cannot be read ({_said(error)}; {path.stat().st_size:,} bytes): give a safetensors file, or one "
            "of torch.save that holds a state_dict() of tensors; if it was copied, look whether all of it has arrived"
        ) from error


def damage_of(path: Path) -> str | None:
    """What is wrong with a file, whatever it should hold, and what to do; None where nothing is seen."""
    try:
        if not path.is_file():
            return "is no file: give the path of one"
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        return f"cannot be opened ({error.strerror}): look at its permissions"
    if not head.strip():
        return "is empty: copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is only a pointer of git-lfs, not the file itself: run git lfs pull where it came from"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not the file itself: download it again by its direct address"
    return None


def _said(error: Exception) -> str:
    """The first line of an error, and of PyTorch's about objects in a checkpoint their type."""
    if kind := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
        return f"it holds a {kind[1]}, which is not read as it could run code"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _states(content: object, where: str = "", depth: int = 2) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors alone in a checkpoint, with the keys that lead to it."""
    if not isinstance(content, Mapping) or not content:
        return
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield where, dict(content)
    elif depth:
        for key, value in content.items():
            yield from _states(value, f"{where}.{key}".lstrip("."), depth - 1)


def _placed(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The state under the names of the network; None where it doesn't fit."""
    state = {name: value for name, value in state.items() if name != AVERAGED or name in expected}
    given, wanted = _unwrapped(state), _unwrapped(expected)
    for ours, theirs in ((given, wanted), (_without_first(given), wanted), (given, _without_first(wanted))):
        counters = {name for name in theirs.keys() - ours.keys() if name.endswith(COUNTER)}
        if ours.keys() == theirs.keys() - counters:
            found = {theirs[name]: state[ours[name]] for name in ours}
            found |= {theirs[name]: expected[theirs[name]] for name in counters}
            return None if any(_differs(found[name], expected[name]) for name in expected) else found
    return None


def _unwrapped(names: Mapping[str, object]) -> dict[str, str]:
    """The names by what they are without wrappers, or by themselves where two of them differ by nothing else."""
    short = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}
    return short if len(short) == len(names) else {name: name for name in names}


def _without_first(names: dict[str, str]) -> dict[str, str]:
    """The names without their first part, where all share it, as those of a network that another one holds do."""
    if len({short.split(".")[0] for short in names}) > 1:
        return names
    return {short.partition(".")[2]: name for short, name in names.items()}


def _differs(value: Tensor, expected: Tensor) -> bool:
    """Whether a tensor has another shape, or is of another kind of number, which a conversion would spoil."""
    if is_lazy(expected):
        return False
    kinds = (Tensor.is_floating_point, Tensor.is_complex)
    return value.shape != expected.shape or any(kind(value) != kind(expected) for kind in kinds)


def _is_finite(value: Tensor, expected: Tensor) -> bool:
    """Whether a tensor is, in the precision that it gets."""
    return bool(torch.isfinite(value.to(expected.dtype)).all())


def _difference(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    missing, unexpected = [[*(one.keys() - other.keys())] for one, other in ((expected, state), (state, expected))]
    others = [name for name in expected if name in state and _differs(state[name], expected[name])]
    first = others[0] if others else ""
    shapes = f"{first} with {_kind(state[first])} for {_kind(expected[first])}" if others else "none"
    return (
        f"{len(missing)} missing ({_first(missing)}), {len(unexpected)} unexpected ({_first(unexpected)}), "
        f"{len(others)} of another shape or type ({shapes})"
    )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _first(names: list[str]) -> str:
    return f"the first is {sorted(names)[0]}" if names else "none"
