"""Small trained models that come with the package, so that a measurement can be tried at once."""

from pathlib import Path

from stages.paths import local_path

PREFIX = "pretrained:"
"""What their names begin with where a model is named."""


def model_directory(named: str | Path, called: str) -> Path:
    """The directory of a saved model, by its path or as ``pretrained:NAME``; ``called`` is what whoever asks calls it.

    Raises ValueError for a path that is none, and for a name that is not there, with those that are.
    """
    if not isinstance(named, str) or not named.startswith(PREFIX):
        return local_path(named, called)
    place, name = Path(__file__).parent, named.removeprefix(PREFIX)
    known = sorted(path.parent.name for path in place.glob("*/config.json"))
    if name not in known:
        raise ValueError(f"{named} is no model that comes with the package; there is {', '.join(known)}")
    return place / name
