"""To which installed package a piece of code belongs, and in which version: code that nobody edits between two runs."""

import sys
import sysconfig
from functools import cache
from importlib import metadata
from pathlib import Path

OURS = ("stages", "pipeline", "cluster")  # which change without a new version, wherever they are installed
PYTHON = "python"


def package_of_module(name: str) -> str | None:
    """`package_of` for the file of a module by its name, as classes and functions have it."""
    if name == "__main__":
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return PYTHON if name.partition(".")[0] in sys.stdlib_module_names else None
    return package_of(file)


@cache
def package_of(file: str) -> str | None:
    """The installed package, with its version, to which a source file belongs; None for code that may change at will.

    Python itself, PyTorch and NumPy have no version here: what they compute is the same but for rounding.
    """
    if file.startswith("<"):  # compiled from text, as a notebook's cell and a dataclass's methods are
        return PYTHON if file.startswith("<frozen") else None
    path, folders = Path(file).resolve(), sysconfig.get_paths()
    for name in ("purelib", "platlib"):
        if path.is_relative_to(installed := Path(folders[name]).resolve()):
            return _versioned(path.relative_to(installed).parts[0].removesuffix(".py"))
    for folder in path.parents:
        if folder.name in ("site-packages", "dist-packages"):
            return _versioned(path.relative_to(folder).parts[0].removesuffix(".py"))
    inside = any(path.is_relative_to(Path(folders[name]).resolve()) for name in ("stdlib", "platstdlib"))
    return PYTHON if inside else None


def _versioned(package: str) -> str | None:
    if package in OURS:
        return None
    if package in ("torch", "numpy"):
        return package
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:  # imported under another name than it is installed
        return f"{package} {getattr(sys.modules.get(package), '__version__', '')}"
