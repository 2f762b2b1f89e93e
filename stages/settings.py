"""What every config asks of its own settings, wherever it is made: each is of its kind, and every number is finite.

A word that means nothing, such as precision "bf16", would else be taken for one of the others.

>>> @dataclasses.dataclass(frozen=True, kw_only=True)
... class Config:
...     order: Literal["first", "last"] = "first"
>>> check_settings(Config(order="lsat"), "config")
Traceback (most recent call last):
ValueError: config.order is 'lsat'; allowed are first, last
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np

Value = TypeVar("Value")
Hint = Any  # what typing.get_type_hints finds: a type, a union of types, or a Literal
CALLED = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a text, not empty",
    type(None): "None",
}


def check_settings(config: object, name: str) -> None:
    """Raise ValueError, with ``name`` and that of the setting, unless each is of the type of its field.

    NumPy's numbers become Python's own, and lists tuples: so they are recorded.
    """
    for setting, hint in _hints(type(config)).items():
        value = getattr(config, setting)
        own = checked(value, hint, f"{name}.{setting}")
        if own is not value:
            object.__setattr__(config, setting, own)


def checked(value: Value, hint: Hint, name: str) -> Value:
    """The value, a NumPy number as Python's own and a list as a tuple. Raises ValueError unless it is of the type."""
    own = tuple(value) if isinstance(value, list) else value.item() if isinstance(value, np.generic) else value
    if not _is(own, hint):
        raise ValueError(f"{name} is {value!r}; {_allowed(hint)}")
    return own  # pyright: ignore[reportReturnType] - as _is has found


def check_listener(value: object, name: str) -> None:
    """Raise ValueError for what nothing can be told to: neither a function nor anything else that is called."""
    if not callable(value):
        raise ValueError(  # noqa: TRY004 - a setting
            f"{name} is {value!r}; pass a function that takes a line, such as print"
        )


def read_arguments(text: str, name: str) -> dict[str, Any]:
    """Keyword arguments that are written as JSON. Raises ValueError, with the setting's name, for anything else."""
    example = f"write it as '{json.dumps({'depth': 28})}'"
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is {text!r}, which is no JSON ({error}): {example}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} is {text!r}; it must be an object of JSON: {example}")  # noqa: TRY004 - a setting
    return found


def with_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they were before they were JSON, which has lists alone."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


@lru_cache
def _hints(kind: type) -> dict[str, Hint]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]


def _is(value: object, hint: Hint) -> bool:
    """Whether a value is of the type of a field."""
    inner = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_is(value, each) for each in inner)
    if typing.get_origin(hint) is Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is(each, inner[0]) for each in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    if hint is str:
        return isinstance(value, str) and not value.isspace() and value != ""
    return isinstance(value, hint)


def _allowed(hint: Hint) -> str:
    if typing.get_origin(hint) is Literal:
        return f"allowed are {', '.join(map(str, typing.get_args(hint)))}"
    return f"it must be {_called(hint)}"


def _called(hint: Hint) -> str:
    inner = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return " or ".join(map(_called, inner))
    if typing.get_origin(hint) is tuple:
        return f"a tuple, in which each is {_called(inner[0])}"
    return CALLED.get(hint) or f"a {hint.__name__}"
