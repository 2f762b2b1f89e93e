"""The space of a search as --search.space writes it, read against a recipe, and the default one.

>>> from pipeline.presets import digits
>>> read_space(digits(), ("attack.steps=5,10", "train.learning-rate=1e-3..1e-2:log", "schedule.life=10..40"))
... # doctest: +NORMALIZE_WHITESPACE
{'attack.steps': Choice(values=(5, 10)), 'train.learning_rate': Range(low=0.001, high=0.01, log=True, whole=False),
 'schedule.life': Range(low=10, high=40, log=False, whole=True)}
"""

import typing
from collections.abc import Collection
from dataclasses import replace

from pipeline.fields import field_type, flag, read_value, replaced, value_of
from pipeline.recipe import Recipe
from stages.rap.process import AttackConfig
from stages.rap.threat import Lattice, default_denominator
from stages.search.space import Axis, Choice, Range, Settings

DEFAULT_SPACE = ("attack.steps", "attack.step_size", "attack.noise_scale")
LENGTHS = ("attack.step_size", "attack.noise_scale")  # in pixels, on the lattice
FIXED = {
    "data": "trials are compared on the same images",
    "threat": "trials are compared under the same attacker",
    "model": "it is what is defended",
    "classifier": "it is what is defended",
    "judge": "a recipe that chose its judge would grade itself",
    "search": "it is the search itself",
    "evaluation": "it comes after the training, and on test images",
    "checks": "they come after the training, and on test images",
    "seed": "that would be a search for luck",
    "checkpoint_rounds": "it changes no result",
    "schedule.rounds": "trials take --search.rounds, and the training after them as many as before",
    "train.workers": "a trial trains in one process",
    "train.from_cache": "trials start from nothing",
    "train.cache_passes": "trials start from nothing",
}


def read_space(recipe: Recipe, texts: Collection[str]) -> dict[str, Axis]:
    """For each setting its values or its range. Raises ValueError, in words for the user, for what makes no sense."""
    space: dict[str, Axis] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ValueError(
                f"search.space {text!r} is no setting with values: write attack.step-size=0.1,0.2 or "
                "train.learning-rate=1e-3..1e-2:log"
            )
        name = name.replace("-", "_")
        if name in space:
            raise ValueError(f"search.space names {flag(name)} twice: give all its values once")
        try:
            kind = field_type(recipe, name)
            if reason := _fixed(name):
                raise ValueError(f"{flag(name)} cannot be searched: {reason}")  # noqa: TRY301 - as the others
            space[name] = _read_axis(kind, values, flag(name))
            _check_values(recipe, name, space[name])
        except ValueError as error:
            raise ValueError(f"search.space {text}: {error}") from None
    return space


def _fixed(name: str) -> str:
    return FIXED.get(name) or FIXED.get(name.partition(".")[0], "")


def _read_axis(kind: type, text: str, name: str) -> Axis:
    low, dots, rest = text.partition("..")
    if not dots:
        values = tuple(read_value(kind, each, name) for each in text.split(","))
        if len(set(values)) < len(values):
            raise ValueError(f"{name} has a value twice")
        return Choice(values)
    high, *marks = rest.split(":")
    kinds = typing.get_args(kind) or (kind,)
    if (int not in kinds and float not in kinds) or set(marks) - {"log", "int"}:
        raise ValueError(f"{name} has no such range: give low..high, low..high:log or low..high:int of a number")
    is_whole = int in kinds or "int" in marks
    ends = [read_value(int if is_whole else float, each, name) for each in (low, high)]
    if not ends[0] < ends[1] or ("log" in marks and ends[0] <= 0):
        raise ValueError(f"{name} goes from {low} to {high}: the first must be less, and with :log greater than 0")
    return Range(ends[0], ends[1], log="log" in marks, whole=is_whole)


def _check_values(recipe: Recipe, name: str, axis: Axis) -> None:
    """Raise what the recipe itself says of a value, or of an end of a range."""
    values = axis.values if isinstance(axis, Choice) else (axis.low, axis.high)
    for value in values:
        changed = replaced(recipe, {name: value} if isinstance(axis, Choice) else snapped(recipe, {name: value}))
        changed.loop()


def default_space(recipe: Recipe, fixed: Collection[str] = ()) -> tuple[str, ...]:
    """T, step size and noise scale around the recipe's own, as far as they make sense; not those that are ``fixed``."""
    radius, attack = recipe.threat.radius, recipe.attack
    tried: dict[str, list[float | int]] = {
        "attack.steps": [attack.steps // 2, attack.steps, 2 * attack.steps],
        "attack.step_size": [radius / 4, radius / 2, radius],
        "attack.noise_scale": [radius / 2, radius] if attack.start != "none" else [],
    }
    found = []
    for name, values in tried.items():
        usable = [value for value in values if _makes_sense(recipe, name, value)]
        if name not in fixed and len(usable) > 1:
            texts = dict.fromkeys(str(snapped(recipe, {name: value})[name]) for value in usable)
            found.append(f"{flag(name)}={','.join(texts)}")
    return tuple(found)


def _makes_sense(recipe: Recipe, name: str, value: float | int) -> bool:
    try:
        replaced(recipe, snapped(recipe, {name: value})).loop()
    except ValueError:
        return False
    return True


def snapped(recipe: Recipe, settings: Settings) -> Settings:
    """Settings with the lengths of the attack on the lattice, which is what is recorded."""
    denominator = settings.get("attack.denominator", recipe.attack.denominator)
    lattice = Lattice(int(denominator or default_denominator(recipe.threat.norm)))
    return {
        name: lattice.snap(value) if name in LENGTHS and isinstance(value, float) else value
        for name, value in settings.items()
    }


def resolved(recipe: Recipe) -> AttackConfig:
    """The recipe's attack with every length as a number on the lattice."""
    process = recipe.attack.process(recipe.threat)
    noise = process.noise / process.denominator if process.noise else None
    return replace(recipe.attack, step_size=process.step / process.denominator, noise_scale=noise)


def own_settings(recipe: Recipe, names: Collection[str]) -> Settings:
    """What the recipe itself has for some fields."""
    known = replace(recipe, attack=resolved(recipe))
    return {name: value_of(known, name) for name in names}
