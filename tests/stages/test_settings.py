"""Settings of the wrong kind: refused by name wherever a config is made, and never taken for another."""

import dataclasses
import doctest
import math
import typing
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from unchecked import unchecked_types

from pipeline.flags import WorkersConfig
from pipeline.recipe import Recipe
from stages import settings
from stages.evaluation.bpda import BPDAConfig
from stages.evaluation.pgd import PGDConfig
from stages.evaluation.screening import ScreeningConfig
from stages.nets.unet import UNetConfig
from stages.rap.objective import ObjectiveConfig
from stages.rap.process import AttackConfig
from stages.rap.threat import ThreatModel
from stages.training.adapter import TrainConfig


def parts_of(kind: type) -> Iterator[type]:
    """The configs that a config is made of."""
    hints = typing.get_type_hints(kind)
    for hint in hints.values():
        if dataclasses.is_dataclass(hint):
            yield typing.cast(type, hint)
            yield from parts_of(typing.cast(type, hint))


CONFIGS: set[type] = {*parts_of(Recipe), WorkersConfig, UNetConfig, PGDConfig, BPDAConfig, ScreeningConfig}
CONFIGS -= {ThreatModel}  # which has words of its own
OUTSIDE: dict[object, tuple[object, ...]] = {
    int: (1.5, True, "1", None, math.nan, torch.tensor(1)),
    float: ("0.1", True, None, math.nan, math.inf, -math.inf, 1j, torch.tensor(0.1)),
    bool: ("no", 1, None),
    str: (1, b"a", "", " ", None),
}


@pytest.mark.parametrize("name", sorted(config.__name__ for config in CONFIGS))
def test_a_setting_of_another_kind_is_refused_by_its_name(name: str):
    (config,) = (each for each in CONFIGS if each.__name__ == name)
    for field, hint in typing.get_type_hints(config).items():
        kinds = {hint, *typing.get_args(hint)}
        known = kinds & OUTSIDE.keys()
        wrong = ("lsat",) if typing.get_origin(hint) is typing.Literal else OUTSIDE[known.pop()] if known else (b"",)
        for value in wrong:
            if value is not None or type(None) not in kinds:
                required = {"method": "bim"} if "method" in typing.get_type_hints(config) else {}
                with unchecked_types(), pytest.raises(ValueError, match=rf"\.{field} is .*; (it must be|allowed are) "):
                    config(**{**required, field: value})


def test_numbers_of_numpy_and_lists_are_recorded_as_pythons_own():
    with unchecked_types():
        found = AttackConfig(steps=np.int64(5), step_size=np.float32(0.5))  # pyright: ignore[reportArgumentType]
        assert (type(found.steps), type(found.step_size)) == (int, float)
        assert UNetConfig(multipliers=[1, 2]) == UNetConfig(multipliers=(1, 2))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttackConfig(precision="bf16"), r"attack\.precision is 'bf16'; allowed are float32, tf32, bfloat16"),  # pyright: ignore[reportArgumentType]
        (lambda: TrainConfig(optimizer="adam"), r"train\.optimizer is 'adam'; allowed are adamw, sgd"),  # pyright: ignore[reportArgumentType]
        (lambda: ObjectiveConfig(norm="L1"), r"objective\.norm is 'L1'; allowed are l1, l2"),  # pyright: ignore[reportArgumentType]
        (lambda: TrainConfig(objective=None), "objective is None; it must be a ObjectiveConfig"),  # pyright: ignore[reportArgumentType]
        (lambda: UNetConfig(multipliers=(1, 2.5)), "a tuple, in which each is a whole number"),  # pyright: ignore[reportArgumentType]
        (lambda: UNetConfig(attention=2), r"adapter\.attention is 2; the resolutions are 0 to 1"),
        (lambda: AttackConfig(threads=10**6), r"attack\.threads is 1000000; .* at most 1,024"),
    ],
)
def test_the_message_says_what_is_allowed(make: typing.Callable[[], object], message: str):
    with unchecked_types(), pytest.raises(ValueError, match=message):
        make()


def test_the_example_runs():
    assert doctest.testmod(settings).failed == 0
