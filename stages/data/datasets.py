"""The data sets that a recipe can name, with splits that never change.

>>> data = load_data(DataConfig(name="digits"))
>>> len(data.train), len(data.holdout), len(data.test)
(1277, 160, 360)
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from stages.data.formats import DataError
from stages.data.sources import Source, read_cifar10, read_digits, read_mnist
from stages.data.splits import Split, divide
from stages.paths import local_path
from stages.settings import check_settings

DataName = Literal["digits", "mnist", "cifar10"]
NAMES: tuple[DataName, ...] = ("digits", "mnist", "cifar10")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images to train and test on."""

    name: DataName = "digits"
    """Data set: digits (8x8, comes with scikit-learn), mnist or cifar10."""
    root: str | None = None
    """Folder where torchvision leaves data sets; unset: the environment variable RAP_DATA_ROOT, else
    ~/datasets."""
    train_images: int | None = None
    """Attack and train on only this many images, a fixed random choice; unset: all but the hold-out. The base
    classifier has a number of its own."""
    holdout_images: int = 160
    """Images taken from the training set, on which every decision before the final test is judged."""
    download: bool = False
    """Fetch the data set to the root where it is absent."""

    def __post_init__(self) -> None:
        check_settings(self, "data")
        if self.holdout_images < 1:
            raise ValueError(f"data.holdout_images is {self.holdout_images}; it must be at least 1")
        if self.train_images is not None and self.train_images < 1:
            raise ValueError(f"data.train_images is {self.train_images}; it must be at least 1")

    @property
    def folder(self) -> Path:
        """Where files are looked for. Raises DataError for what is no path."""
        named = self.root or os.environ.get("RAP_DATA_ROOT") or "~/datasets"
        try:
            return local_path(named, "--data.root" if self.root else "RAP_DATA_ROOT")
        except ValueError as error:
            raise DataError(str(error)) from error


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set in its three splits. The hold-out is part of the training set; the test set is apart.

    ``name`` is the one to print; ``train`` are the images that are attacked, a part of ``available``, which is
    the training set without the hold-out; ``mean`` and ``std`` are those of each of its channels, in [0, 1].
    """

    name: str
    train: Split
    available: Split
    holdout: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        """Height, and width, in pixels."""
        return self.train.images.shape[2]


def load_data(config: DataConfig) -> ImageData:
    """The data set that a config names, read, checked and split.

    The splits depend on the data set and the numbers of images only, never on a run's seed. Raises
    DataError when files are absent or wrong, or when there are fewer images than asked for.
    """
    source = read_source(config)
    available = len(source.train) - config.holdout_images
    wanted = available if config.train_images is None else config.train_images
    if not 0 < wanted <= available:
        raise DataError(
            f"{source.name} has {len(source.train)} training images, too few for data.holdout_images "
            f"{config.holdout_images} and data.train_images {config.train_images or 'at least 1'}: "
            "lower one of them"
        )
    holdout, everything = divide(source.train, config.holdout_images, available, "hold-out", config.name)
    _, train = divide(source.train, config.holdout_images, wanted, "hold-out", config.name)
    mean, std = channel_statistics(everything.images)
    return ImageData(source.name, train, everything, holdout, source.test, source.classes, mean, std)


def read_source(config: DataConfig) -> Source:
    """The data set as its files have it."""
    if config.name == "mnist":
        return read_mnist(config.folder, download=config.download)
    if config.name == "cifar10":
        return read_cifar10(config.folder, download=config.download)
    return read_digits()


def channel_statistics(
    images: UInt8[np.ndarray, "image channel height width"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], from exact counts of the 256 values."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for block in np.array_split(images, -(-len(images) // 1024)):  # bincount widens its input eightfold
        for channel, count in enumerate(counts):
            count += np.bincount(block[:, channel].ravel(), minlength=256)
    values = np.arange(256)
    mean, std = [], []
    for count in counts:  # whole numbers up to the one division: the same on every machine
        number, total, squares = int(count.sum()), int(count @ values), int(count @ values**2)
        mean.append(total / (255 * number))
        std.append(math.sqrt(number * squares - total * total) / (255 * number))
    return tuple(mean), tuple(std)
