"""Recipes in files: what a run and a search leave, and what people write."""

import json
from pathlib import PurePosixPath

import yaml

from pipeline.fields import merged
from pipeline.presets import PRESETS
from pipeline.recipe import Recipe
from stages.fingerprint import canonical
from stages.storage import Storage

YAML = (".yaml", ".yml")


def recipe_json(recipe: Recipe, preset: str) -> dict[str, object]:
    """A recipe as a file holds it, but for where data lie."""
    found = canonical(recipe)
    assert isinstance(found, dict)
    data = {name: value for name, value in found["data"].items() if name not in ("root", "download")}
    return {"preset": preset, "recipe": {**found, "data": data}}


def read_recipe(file: str) -> tuple[str, Recipe]:
    """The preset and the recipe of a file: JSON or YAML, with the settings below "recipe" or at the top.

    What it does not set is as in the preset that it names, digits where it names none. Raises ValueError, in words for
    the user, for a file that is no recipe.
    """
    path = PurePosixPath(file)
    content = Storage.at(file[: -len(path.name)].rstrip("/") or ".").find(path.name)
    if content is None:
        raise ValueError("there is no such file")
    try:
        found = yaml.safe_load(content) if path.suffix in YAML else json.loads(content)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"it cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError("it holds no settings by name")  # noqa: TRY004 - of a file, in words for the user
    preset = found.get("preset", "digits")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"it names the preset {preset!r}; allowed are {', '.join(PRESETS)}")
    values = found.get("recipe", {name: value for name, value in found.items() if name != "preset"})
    if not isinstance(values, dict):
        raise ValueError("its recipe holds no settings by name")  # noqa: TRY004 - as above
    return preset, merged(PRESETS[preset](), values)
