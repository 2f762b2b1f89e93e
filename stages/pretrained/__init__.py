"""Small trained models that come with the package, so that a measurement can be tried at once."""

from pathlib import Path

from stages.paths import local_path

PREFIX = "pretrained:"
"""What their names begin with where a model is named."""


def pretrained(name: str) -> Path:
    """The directory of a model by its name behind PREFIX. Raises ValueError, with the names that there are."""
    place = Path(__file__).parent
    known = sorted(path.parent.name for path in place.glob("*/config.json"))
    if name not in known:
        raise ValueError(f"{PREFIX}{name} is no model that comes with the package; there is {', '.join(known)}")
    return place / name


def model_directory(named: str | Path, called: str) -> Path:
    """The directory of a saved model, by its path or as ``pretrained:NAME``; ``called`` is what whoever asks calls it.

    Raises ValueError for a path or a name that is none.
    """
    if isinstance(named, str) and named.startswith(PREFIX):
        return pretrained(named.removeprefix(PREFIX))
    return local_path(named, called)
