"""Files that survive a power cut: what is written here lies on the disk when the call returns."""

import os
from pathlib import Path


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a new file; raises FileExistsError where there is one. Its name needs `sync_directory`."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Put the names of the files in a directory on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
