"""Fields of a recipe by their dotted names, as flags and files write them.

>>> from pipeline.presets import digits
>>> replaced(digits(), {"train.learning_rate": 1e-3}).train.learning_rate
0.001
>>> read_field(digits(), "attack.step-size", "8/255")
0.03137254901960784
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")

LARGEST = 2**31 - 1  # of a whole number: beyond it libraries overflow, each in its own way


def number(text: str) -> float:
    """A finite number, as a decimal or as a fraction such as 8/255. Raises ValueError for anything else."""
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / (float(denominator) if slash else 1.0)
    except ZeroDivisionError:
        raise ValueError(f"{text} divides by zero") from None
    except ValueError:
        raise ValueError(f"{text!r} is no number: give a decimal, or a fraction such as 8/255") from None
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def whole(text: str) -> int:
    """A whole number that a count or a seed may be. Raises ValueError for anything else."""
    value = int(text)
    if abs(value) > LARGEST:
        raise ValueError(f"{text} is larger than {LARGEST}, which no count or seed needs to be")
    return value


def flag(name: str) -> str:
    """A field's name as a flag writes it."""
    return name.replace("_", "-")


def field_type(config: object, name: str) -> Any:  # noqa: ANN401 - a type, a union of types, or a Literal
    """The type of a field of a nested config, by its dotted name.

    Raises ValueError where there is none, or it is a config itself.
    """
    kind: Any = type(config)
    for part in name.replace("-", "_").split("."):
        known = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if part not in known:
            raise ValueError(f"there is no setting {flag(name)}; {_there(kind)}")
        kind = known[part]
    if dataclasses.is_dataclass(kind):
        raise ValueError(f"{flag(name)} is no setting, but a group of them; {_there(kind)}")
    return kind


def value_of(config: object, name: str) -> Any:  # noqa: ANN401 - of whatever type the field has
    """The value of a field by its dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def replaced(config: Config, settings: Mapping[str, object]) -> Config:
    """A config with other values of some fields, by their dotted names. Raises ValueError as its own checks."""
    own: dict[str, object] = {}
    nested: dict[str, dict[str, object]] = {}
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        if rest:
            nested.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    own |= {name: replaced(getattr(config, name), inner) for name, inner in nested.items()}
    return replace(config, **own)  # pyright: ignore[reportType, reportArgumentType] - a dataclass


def merged(config: Config, values: Mapping[str, object], name: str = "") -> Config:
    """A config with the values of a file, as JSON or YAML nests them, in place of its own.

    Raises ValueError, with a field's name, for fields that there are not, and as its own checks.
    """
    kinds, own = typing.get_type_hints(type(config)), {}
    for part, value in values.items():
        key, called = str(part).replace("-", "_"), f"{name}{part}"
        if key not in kinds:
            raise ValueError(f"there is no setting {called}; {_there(type(config))}")
        if dataclasses.is_dataclass(kinds[key]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{called} is {value!r}; it is a group of settings: {_there(kinds[key])}")
            own[key] = merged(getattr(config, key), value, f"{called}.")
        elif isinstance(value, str) and str not in (kinds[key], *typing.get_args(kinds[key])):
            own[key] = read_value(kinds[key], value, called)  # YAML takes 5e-3 for a text
        else:
            own[key] = tuple(value) if isinstance(value, list) else value
    return replace(config, **own)  # pyright: ignore[reportType, reportArgumentType] - a dataclass


def read_field(config: object, name: str, text: str) -> Any:  # noqa: ANN401 - of whatever type the field has
    """A field's value as a command line writes it. Raises ValueError for what the field's type does not allow."""
    return read_value(field_type(config, name), text, flag(name))


def read_value(kind: Any, text: str, name: str) -> Any:  # noqa: ANN401 - any type of a field
    """A value of a type from text. Raises ValueError, which names the field."""
    for each in typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,):
        if each is type(None) and text == "None":
            return None
        if typing.get_origin(each) is Literal:
            for allowed in typing.get_args(each):
                if text == str(allowed):
                    return allowed
            raise ValueError(f"{name} is {text!r}; allowed are {', '.join(map(str, typing.get_args(each)))}")
        if each is bool:
            if text not in ("True", "False"):
                raise ValueError(f"{name} is {text!r}; it must be True or False")
            return text == "True"
        if each in (int, float):
            try:
                return whole(text) if each is int else number(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if each is str:
            return text
    raise ValueError(f"{name} cannot be given as text: it is {kind}")


def _there(kind: Any) -> str:  # noqa: ANN401 - a dataclass or not
    names = [flag(each.name) for each in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    return f"there are: {', '.join(names)}" if names else "it has no parts"
