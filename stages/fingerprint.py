"""Fingerprints: the name of an artifact is the hash of everything that determines it.

No path, host or worker count goes in, only what changes the result. What cannot be hashed without
doubt is refused, so that two different things never share a name.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def canonical(value: object) -> object:
    """The JSON form of a config: dataclasses as objects, tuples as lists, numbers as they are.

    Raises TypeError for a type whose identity is in doubt (an array, a path, a live object).
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"cannot fingerprint {value!r}: use a finite number or None")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: canonical(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("cannot fingerprint a mapping whose keys are not all strings: name them")
        return {key: canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    raise TypeError(
        f"cannot fingerprint a {type(value).__name__}: pass scalars, strings, lists, mappings or "
        "dataclasses of them; for arrays, pass array_fingerprint(array)"
    )


def canonical_json(value: object) -> str:
    """The one JSON text of a config. Raises TypeError as `canonical`."""
    return json.dumps(canonical(value), sort_keys=True, allow_nan=False)


def fingerprint(kind: str, version: int, **parts: object) -> str:
    """32 hexadecimal digits that name an artifact of a kind, made of the given parts (config, inputs)."""
    content = canonical_json({"kind": kind, "version": version, **parts})
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def array_fingerprint(*arrays: np.ndarray) -> str:
    """sha256 over dtype, shape and bytes of the arrays, in order; TypeError for arrays of Python objects."""
    digest = hashlib.sha256()
    for array in arrays:
        if array.dtype.hasobject:
            raise TypeError(f"cannot fingerprint an array of {array.dtype}: its bytes are addresses; convert it")
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def weights_fingerprint(state: Mapping[str, Tensor]) -> str:
    """sha256 over name, dtype, shape and bytes of every tensor of a state dict, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor.dtype != torch.float32:  # NumPy does not know them all
            tensor = tensor.reshape(-1).view(torch.uint8)
        digest.update(tensor.numpy().data)
    return digest.hexdigest()[:32]
