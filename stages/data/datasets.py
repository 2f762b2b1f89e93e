"""The data sets that a recipe can name, with splits that never change.

>>> data = load_data(DataConfig(name="digits"))
>>> len(data.train), len(data.holdout), len(data.test)
(1277, 160, 360)
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from stages.data.brought import READERS, Reading, read_function
from stages.data.formats import DataError
from stages.data.pictures import MODES
from stages.data.sources import Source, read_cifar10, read_digits, read_mnist
from stages.data.splits import Split, repeated
from stages.paths import local_path
from stages.randomness import permutation
from stages.settings import check_settings, read_arguments

NAMES = ("digits", "mnist", "cifar10")
KINDS = ("imagefolder:PATH", "npz:PATH", "torchvision:NAME", "hf:ID", "module:function")
"""How the data sets of anybody's are named."""
REPEATED = 0.01  # share of test images that may be training images as well: less than an interval tells
HOLDOUT = 160  # images of a hold-out that nothing says more of


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images to train and test on."""

    name: str = "digits"
    """Also --data: digits (8x8, comes with scikit-learn), mnist or cifar10; imagefolder:PATH (a folder of pictures for
    each class), npz:PATH (images and labels), torchvision:NAME, hf:ID, or my_package.data:load, a function that returns
    (images, labels)."""
    root: str | None = None
    """Folder where torchvision leaves data sets; unset: the environment variable RAP_DATA_ROOT, else
    ~/datasets."""
    train_images: int | None = None
    """Attack and train on only this many images, a fixed random choice; unset: all but the hold-out. The base
    classifier has a number of its own."""
    holdout_images: int | None = None
    """Images taken from the training set, on which every decision before the final test is judged; unset: 160, or a
    fifth where there are fewer than 800."""
    download: bool = False
    """Fetch the data set to the root where it is absent."""
    arguments: str = "{}"
    """Keyword arguments of the function, or of torchvision's or Hugging Face's own, as JSON."""
    image_size: tuple[int, ...] = ()
    """Pictures of a folder or a library are resized to cover this and cropped to their centre: one number of pixels, or
    height and width; unset: they have one size and keep it."""
    channels: int | None = None
    """Of pictures: 1 (grey), 3 (colour) or 4 (with transparency); unset: 1 where the first is grey, else 3."""
    channels_last: bool = False
    """Take arrays as [image, height, width, channel]."""
    classes: int | None = None
    """Number of classes of arrays; unset: one more than the largest label."""
    test_share: float = 0.2
    """Share of the images that are the test set, where the data name none; 1: all are, and none is left to train on."""
    split_seed: int = 0
    """Seed of which images these are."""

    def __post_init__(self) -> None:
        check_settings(self, "data")
        if self.name not in NAMES and not all(self.name.partition(":")):
            raise ValueError(f"data.name is {self.name!r}; allowed are {', '.join([*NAMES, *KINDS])}")
        if self.holdout_images is not None and self.holdout_images < 1:
            raise ValueError(f"data.holdout_images is {self.holdout_images}; it must be at least 1")
        if self.train_images is not None and self.train_images < 1:
            raise ValueError(f"data.train_images is {self.train_images}; it must be at least 1")

        if len(self.image_size) > 2 or any(side < 1 for side in self.image_size):
            raise ValueError(f"data.image_size is {self.image_size}; give one number of pixels, or height and width")
        if self.channels not in (None, *MODES):
            raise ValueError(f"data.channels is {self.channels}; allowed are 1, 3 and 4")
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"data.classes is {self.classes}; it must be at least 2")
        if not 0 < self.test_share <= 1:
            raise ValueError(f"data.test_share is {self.test_share:g}; it must be above 0 and at most 1")
        if self.split_seed < 0:
            raise ValueError(f"data.split_seed is {self.split_seed}; it must be at least 0")
        self.keywords  # noqa: B018 - refuses what is no JSON

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments, read. Raises ValueError for what is no object of JSON."""
        return read_arguments(self.arguments, "data.arguments")

    @property
    def kind(self) -> str:
        """The name without a place of this machine, as a directory may be called."""
        kind, colon, rest = self.name.partition(":")
        return rest if colon and kind not in READERS else kind

    @property
    def identity(self) -> "DataConfig":
        """The same wherever on this machine the images lie."""
        kind = self.name.partition(":")[0]
        name = f"{kind}:anywhere" if kind in ("imagefolder", "npz") else self.name
        return replace(self, name=name, root=None, download=False)

    @property
    def place(self) -> Path | None:
        """The files that are read, where the name says so or leaves it to the root; None where there are none."""
        kind, _, path = self.name.partition(":")
        if kind in ("imagefolder", "npz"):
            return local_path(path, "--data")
        return self.folder if kind in ("mnist", "cifar10", "torchvision") else None

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
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[2:]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.train.images.shape[1:]


def load_data(config: DataConfig) -> ImageData:
    """The data set that a config names, read, checked and split.

    The splits depend on the data set and the numbers of images only, never on a run's seed. Raises
    DataError when files are absent or wrong, or when there are fewer images than asked for.
    """
    source = read_source(config)
    count = len(source.train)
    if not count:  # all images are tested
        mean, std = channel_statistics(source.test.images)
        none = source.train
        return ImageData(source.name, none, none, none, source.test, source.classes, mean, std)
    holdout_images = config.holdout_images or max(1, min(HOLDOUT, count // 5))
    available = count - holdout_images
    wanted = available if config.train_images is None else config.train_images
    if not 0 < wanted <= available:
        raise DataError(
            f"{source.name} has {count} training images, too few for data.holdout_images "
            f"{holdout_images} and data.train_images {config.train_images or 'at least 1'}: "
            "lower one of them"
        )
    order = permutation(count, "hold-out", config.kind)
    holdout = source.train.take(order[:holdout_images])
    few = source.train.take(order[count - wanted :]) if wanted < available else None
    everything = source.train.keep(order[holdout_images:])
    train = everything if few is None else few
    mean, std = channel_statistics(everything.images)
    return ImageData(source.name, train, everything, holdout, source.test, source.classes, mean, std)


def read_source(config: DataConfig) -> Source:
    """The data set as its files have it."""
    if config.name == "mnist":
        return read_mnist(config.folder, download=config.download)
    if config.name == "cifar10":
        return read_cifar10(config.folder, download=config.download)
    if config.name == "digits":
        return read_digits()
    kind, _, place = config.name.partition(":")
    size = config.image_size
    reading = Reading(
        root=config.folder,
        download=config.download,
        arguments=config.keywords,
        size=(size[0], size[-1]) if size else None,
        channels=config.channels,
        channels_last=config.channels_last,
        classes=config.classes,
        test_share=config.test_share,
        seed=config.split_seed,
    )
    return READERS[kind](place, reading) if kind in READERS else read_function(config.name, reading)


def channel_statistics(
    images: UInt8[np.ndarray, "image channel height width"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], from exact counts of the 256 values."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    few = max(1, 2**20 // math.prod(images.shape[2:]))  # bincount widens its input eightfold
    for block in np.array_split(images, -(-len(images) // few)):
        for channel, count in enumerate(counts):
            count += np.bincount(block[:, channel].ravel(), minlength=256)
    values = np.arange(256)
    mean, std = [], []
    for count in counts:  # whole numbers up to the one division: the same on every machine
        number, total, squares = int(count.sum()), int(count @ values), int(count @ values**2)
        mean.append(total / (255 * number))
        std.append(math.sqrt(number * squares - total * total) / (255 * number))
    return tuple(mean), tuple(std)


def check_trainable(data: ImageData) -> None:
    """Raise DataError where nothing can be learnt from the training images, or nothing be told by the test images,
    since some of them were trained on."""
    if not len(data.train):
        raise DataError(f"{data.name} leaves no images to train on: give data.test_share below 1")
    if len(np.unique(data.train.labels)) == 1:
        raise DataError(f"all training images of {data.name} are of one class, so that nothing is to be told apart")
    if (known := repeated(data.test, data.train, data.holdout)) > REPEATED * len(data.test):
        raise DataError(
            f"{known} of the {len(data.test)} test images of {data.name} are training images as well, on which figures "
            "would say too much: leave them out on one side"
        )
