"""Fetching MNIST and CIFAR-10 to where torchvision would put them, each file checked by its md5."""

import os
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Any

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from stages.data.formats import DataError

# Addresses and md5 sums are torchvision's (datasets/mnist.py) and those of the CIFAR-10 page.
MNIST_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
CIFAR10_MIRROR = "https://www.cs.toronto.edu/~kriz/"
CIFAR10_MD5 = {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}


class DownloadBar:
    """What pooch asks of a progress bar, drawn by rich on a terminal; elsewhere pooch's own log lines do."""

    def __init__(self, name: str) -> None:
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn(name),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(name, total=None)

    def __enter__(self) -> "DownloadBar":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def total(self) -> int | float | None:
        return self.progress.tasks[0].total

    @total.setter
    def total(self, count: int) -> None:
        self.progress.update(self.task, total=count or None)

    def update(self, count: int) -> None:
        self.progress.update(self.task, advance=count)

    def reset(self) -> None:
        self.progress.update(self.task, completed=0)

    def close(self) -> None:
        self.progress.stop()


def fetch(mirror: str, name: str, md5: str, folder: Path) -> Path:
    """The path of a file in a folder, fetched unless it is there already with this md5.

    Raises DataError when it cannot be fetched, or arrives with another md5; nothing is left behind then.
    """
    try:
        with DownloadBar(name) as bar:
            # pooch documents objects like this one, and its annotation has only bool.
            progress: Any = bar
            return Path(pooch.retrieve(mirror + name, f"md5:{md5}", name, folder, progressbar=progress))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{mirror}{name} could not be fetched to {folder}: {error}. Try again, or put the file there "
            "by hand, or point --data.root at a folder that has the data set"
        ) from error


def download_mnist(root: Path) -> None:
    """Fetches MNIST's four files to ROOT/MNIST/raw."""
    for name, md5 in MNIST_MD5.items():
        fetch(MNIST_MIRROR, name, md5, root / "MNIST" / "raw")


def download_cifar10(root: Path) -> None:
    """Fetches CIFAR-10's binary archive to ROOT and unpacks it to ROOT/cifar-10-batches-bin."""
    for name, md5 in CIFAR10_MD5.items():
        unpack(fetch(CIFAR10_MIRROR, name, md5, root), root / "cifar-10-batches-bin")


def unpack(archive: Path, folder: Path) -> None:
    """Writes the .bin files of an archive into a folder, each whole or not at all.

    Paths, links and modes in the archive are ignored; only the last part of a file's name counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() and member.name.endswith(".bin") else None
            if content is not None:
                target = folder / Path(member.name).name
                partial = target.with_suffix(f".{os.getpid()}")
                partial.write_bytes(content.read())
                partial.replace(target)
