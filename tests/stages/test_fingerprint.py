"""Fingerprints: equal for what is equal, different for what is not, and refused where that is in doubt."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.fingerprint import array_fingerprint, canonical_json, fingerprint, weights_fingerprint


@dataclass(frozen=True)
class Inner:
    size: int = 3


@dataclass(frozen=True)
class Config:
    name: str = "a"
    rate: float = 0.5
    inner: Inner = Inner()
    many: tuple[int, ...] = (1, 2)


def test_equal_configs_have_equal_fingerprints_whatever_the_order_of_their_names():
    assert fingerprint("shard", 1, a=1, b={"x": 1, "y": 2}) == fingerprint("shard", 1, b={"y": 2, "x": 1}, a=1)
    assert fingerprint("shard", 1, config=Config()) == fingerprint("shard", 1, config=Config())
    as_dict = {"name": "a", "rate": 0.5, "inner": {"size": 3}, "many": [1, 2]}
    assert fingerprint("shard", 1, config=Config()) == fingerprint("shard", 1, config=as_dict)


CHANGES = [
    fingerprint("shard", 1, config=Config()),
    fingerprint("trajectory", 1, config=Config()),
    fingerprint("shard", 2, config=Config()),
    fingerprint("shard", 1, other=Config()),
    fingerprint("shard", 1, config=Config(name="b")),
    fingerprint("shard", 1, config=Config(rate=0.5000000000000001)),
    fingerprint("shard", 1, config=Config(inner=Inner(4))),
    fingerprint("shard", 1, config=Config(many=(2, 1))),
    fingerprint("shard", 1, config=Config(many=())),
    fingerprint("shard", 1, config=None),
]


def test_any_change_changes_the_fingerprint():
    assert len(set(CHANGES)) == len(CHANGES)
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in CHANGES)


def test_numbers_of_different_types_and_their_texts_are_different():
    values = [1, 1.0, True, "1", "1.0", "true", [1], None, "None"]
    assert len({fingerprint("shard", 1, value=value) for value in values}) == len(values)


def test_fingerprints_do_not_change_from_one_version_to_the_next():
    assert canonical_json({"b": (1, 0.1), "a": None}) == '{"a": null, "b": [1, 0.1]}'
    assert (
        fingerprint("shard", 1, value=[1, 0.1, "x"])
        == hashlib.sha256(b'{"kind": "shard", "value": [1, 0.1, "x"], "version": 1}').hexdigest()[:32]
    )


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2),
        np.int64(1),
        torch.zeros(1),
        Path("/tmp"),
        float("nan"),
        float("inf"),
        {1: 2},
        {1, 2},
        b"bytes",
        object(),
        Config,
        [[Path("x")]],
        {"a": {"b": np.float32(1)}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_hashed_without_doubt_is_refused(value):
    with pytest.raises(TypeError, match="cannot fingerprint"):
        fingerprint("shard", 1, value=value)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-3, 3), max_size=6), st.integers(0, 6))
def test_arrays_are_told_apart_by_type_shape_bytes_and_where_they_end(values, cut):
    array = np.array(values, np.int64)
    assert array_fingerprint(array) == array_fingerprint(array.copy())
    others = [array.astype(np.int32), array[None], array.astype(np.uint64), np.append(array, 1)]
    assert array_fingerprint(array) not in {array_fingerprint(other) for other in others}
    if 0 < cut < len(values):
        assert array_fingerprint(array[:cut], array[cut:]) != array_fingerprint(array)


def test_the_layout_of_an_array_in_memory_does_not_matter():
    array = np.arange(12).reshape(3, 4)
    assert array_fingerprint(array[:, ::2]) == array_fingerprint(np.ascontiguousarray(array[:, ::2]))
    assert array_fingerprint(np.asfortranarray(array)) == array_fingerprint(array)


def test_an_array_of_python_objects_is_refused():
    with pytest.raises(TypeError, match="its bytes are addresses"):
        array_fingerprint(np.array([{}], object))


def test_weights_are_told_apart_by_name_type_shape_and_bytes_but_not_by_order():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True), "c": torch.ones(2).bfloat16()}
    name = weights_fingerprint(state)
    assert weights_fingerprint(dict(reversed(state.items()))) == name
    assert weights_fingerprint({**state, "a": state["a"].clone().t().contiguous().t()}) == name
    changed = state["a"].clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(9.0))
    others = [
        {**state, "a": changed},
        {**state, "a": state["a"].reshape(3, 2)},
        {**state, "a": state["a"].double()},
        {**state, "b": torch.tensor(False)},
        {"z": state["a"], "b": state["b"], "c": state["c"]},
        {"a": state["a"], "b": state["b"]},
        {**state, "c": torch.ones(2).half()},
    ]
    assert len({name, *map(weights_fingerprint, others)}) == 8
