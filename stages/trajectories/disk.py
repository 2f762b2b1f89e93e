"""Files that survive a power cut: what is written here lies on the disk when the call returns."""

import os
from collections.abc import Mapping
from pathlib import Path


def write_files(root: Path, files: Mapping[str, bytes | memoryview]) -> None:
    """Write new files below ``root`` by their relative names, and make the folders that they need.

    Raises FileExistsError where one of them exists.
    """
    paths = [root / name for name in files]
    folders = sorted({root, *(path.parent for path in paths)})
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for path, content in zip(paths, files.values(), strict=True):
        with path.open("xb") as file:
            file.write(content)
    # only when all are written: a journalling file system then commits them together, at the first fsync
    for path in (*paths, *folders):
        _sync(path)


def sync_directory(path: Path) -> None:
    """Put the names in a directory on the disk, after files in it were added, renamed or removed."""
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
