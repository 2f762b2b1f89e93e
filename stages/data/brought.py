"""Data sets of anybody's: a folder of pictures, a file of arrays, other libraries' data sets, a function.

Where no test part is given, a fixed share of the images is it, by a seed.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stages.data.formats import DataError
from stages.data.images import labels_of, pixels_of
from stages.data.pictures import array_of
from stages.data.sources import Source, whole_split
from stages.data.splits import Split, divide
from stages.named import imported, said

TRAIN, TEST = ("train", "training"), ("test", "val", "valid", "validation")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
PAIRS = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
    "all": (("images", "labels"), ("x", "y")),
}
MOST_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a data set of anybody's is read; the fields are those of `DataConfig`."""

    root: Path
    download: bool
    arguments: dict[str, Any]
    size: tuple[int, int] | None
    channels: int | None
    channels_last: bool
    classes: int | None
    test_share: float
    seed: int


Pairs = tuple[Sequence[Image.Image | str], Sequence[int]]


def read_folder(place: str, reading: Reading) -> Source:
    """Pictures in a folder for each class, below train/ and test/ (or val/) where there are such.

    The classes are the names of the folders in order of the alphabet. Raises DataError where there is nothing to read.
    """
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise DataError(f"imagefolder:{place} is no folder: give one that holds a folder of pictures for each class")
    parts = [next((folder / name for name in names if (folder / name).is_dir()), None) for names in (TRAIN, TEST)]
    roots = [part for part in parts if part is not None] if all(parts) else [folder]
    names = sorted({each.name for root in roots for each in root.iterdir() if each.is_dir()})
    found: list[Pairs] = [_files(root, names) for root in roots]
    if not all(files for files, _ in found):
        raise DataError(
            f"{folder} holds no pictures in folders of classes: expected CLASS/*.png (or "
            f"{', '.join(each for each in SUFFIXES if each != '.png')}), also below train/ and test/"
        )
    return _of_pictures(f"imagefolder {folder.resolve().name}", found, names, reading)


def _files(root: Path, names: Sequence[str]) -> Pairs:
    files = [
        (str(path), label)
        for label, name in enumerate(names)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    return [path for path, _ in files], [label for _, label in files]


def read_npz(place: str, reading: Reading) -> Source:
    """Arrays of a NumPy file. Raises DataError for another file, or for arrays that `arrays_source` refuses."""
    path = Path(place).expanduser()
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, AttributeError, BadZipFile) as error:
        raise DataError(f"npz:{place} cannot be read ({said(error)}): give a file that numpy.savez wrote") from error
    return arrays_source(f"npz {path.stem}", arrays, reading)


def read_function(path: str, reading: Reading) -> Source:
    """What a function returns: (images, labels), or a dict of arrays as an npz file has them."""
    function: Any = imported(path, "--data", "a function in it, as in my_package.data:load")
    try:
        found = function(**reading.arguments)
    except (Exception, SystemExit) as error:  # whatever anybody's function may raise
        raise DataError(f"--data {path} raised an error instead of returning images ({said(error)})") from error
    if isinstance(found, tuple | list) and len(found) == 2:
        found = {"images": found[0], "labels": found[1]}
    if not isinstance(found, Mapping):
        raise DataError(
            f"--data {path} returned a {type(found).__name__}; expected (images, labels), or a dict of them"
        )
    return arrays_source(path.replace(":", " "), {name: _copied(values) for name, values in found.items()}, reading)


def _copied(values: object) -> object:
    """Bytes of a function's own in memory that may be rearranged; what is to be converted stays as it is."""
    if isinstance(values, Tensor):
        return values.clone() if values.dtype == torch.uint8 else values
    return values.copy() if isinstance(values, np.ndarray) and values.dtype == np.uint8 else values


def arrays_source(name: str, arrays: Mapping[str, object], reading: Reading) -> Source:
    """Images [image, channel, height, width] and class numbers by the names of `PAIRS`.

    Raises DataError for other names, and for arrays that `pixels_of` and `labels_of` refuse.
    """
    found = {part: next((p for p in pairs if set(p) <= arrays.keys()), None) for part, pairs in PAIRS.items()}
    parts = [found["train"], found["test"]] if found["train"] and found["test"] else [found["all"]]
    if parts == [None]:
        raise DataError(
            f"{name} holds {', '.join(map(str, arrays)) or 'nothing'}; expected images and labels (or x and y), or "
            "x_train, y_train, x_test and y_test (or train_images, train_labels, test_images, test_labels)"
        )
    read = [_pair(name, arrays[pair[0]], arrays[pair[1]], reading) for pair in parts if pair]
    labels = np.concatenate([numbers for _, numbers in read])
    if reading.classes is None and int(labels.min()) == 1:
        raise DataError(f"{name} has no image of class 0: use labels - 1 where they count from 1, or --data.classes")
    count = reading.classes or int(labels.max()) + 1
    if int(labels.max()) >= count:
        raise DataError(f"{name} has the label {labels.max()}; --data.classes {count} allow 0 to {count - 1}")
    return _source(name, [whole_split(*each) for each in read], tuple(map(str, range(count))), reading)


def _pair(name: str, images: Any, labels: Any, reading: Reading) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401 - whatever was given
    try:
        if reading.channels_last:
            images = np.moveaxis(np.asarray(images), -1, 1)
        pixels = pixels_of(images).numpy(force=True)
        column = np.ndim(labels) == 2 and np.shape(labels)[1] == 1  # as MedMNIST's
        numbers = labels_of(np.ravel(labels) if column else labels).numpy(force=True)
    except ValueError as error:
        flag = "; or pass --data.channels-last" if "[image, height, width, channel]" in str(error) else ""
        raise DataError(f"{name}: {error}{flag}") from error
    if len(pixels) != len(numbers):
        raise DataError(f"{name} has {len(pixels)} images and {len(numbers)} labels; expected one label for each image")
    return pixels, numbers


def read_torchvision(name: str, reading: Reading) -> Source:
    """A data set of torchvision by the name of its class, from --data.root: the part that the arguments name, else its
    training and its test part."""
    module = _installed("torchvision", "torchvision.datasets", name)
    kind = getattr(module, name, None)
    if kind is None:
        raise DataError(f"torchvision.datasets has no {name}; names are those of its classes, such as SVHN or GTSRB")
    known = inspect.signature(kind).parameters
    common: dict[str, Any] = {"root": str(reading.root)} if "root" in known else {}  # FakeData reads nothing
    # not False for EMNIST, which hands on what it is given, nor for ImageNet, which refuses it
    if reading.download or "download" in known:
        common["download"] = reading.download
    common |= reading.arguments
    splits: list[dict[str, Any]] = [{}]  # where the arguments name a part, that alone
    if "train" in known and "train" not in common:
        splits = [{"train": True}, {"train": False}]
    elif "split" in known and "split" not in common:
        splits = [{"split": "train"}, {"split": "test"}]
    try:
        parts = [kind(**{**common, **split}) for split in splits]
    except Exception as error:  # files that are not there, a split or an argument that is not known
        raise DataError(
            f"torchvision:{name} could not be read from {reading.root} ({said(error)}): pass --data.download to fetch "
            'it, and what else it wants by --data.arguments, as \'{"split": "letters"}\''
        ) from error
    names = getattr(parts[0], "classes", None)
    return _of_pictures(f"torchvision {name}", [_Column.pairs(part) for part in parts], names, reading)


def read_hub(name: str, reading: Reading) -> Source:
    """A data set of the Hugging Face hub, by its `datasets` library."""
    library = _installed("datasets", "datasets", name)
    try:
        found = library.load_dataset(name, **reading.arguments)
    except Exception as error:  # no network, no such name, a configuration that must be chosen
        raise DataError(
            f"hf:{name} could not be loaded ({said(error)}): look at the name, and at --data.arguments, as "
            '\'{"name": "default"}\''
        ) from error
    if not isinstance(found, Mapping):
        raise DataError(f"hf:{name} is one split; leave out split in --data.arguments")
    keys = [next((key for key in wanted if key in found), None) for wanted in (TRAIN, TEST)]
    parts = [found[key] for key in keys if key] if all(keys) else [next(iter(found.values()))]
    features = parts[0].features
    image = next((key for key, kind in features.items() if type(kind).__name__ == "Image"), None)
    label = next((key for key, kind in features.items() if type(kind).__name__ == "ClassLabel"), None)
    if image is None or label is None:
        raise DataError(f"hf:{name} has {', '.join(features)}; expected a column of Image and one of ClassLabel")
    pairs: list[Pairs] = [(_Column(part, image), list(part[label])) for part in parts]
    return _of_pictures(f"hf {name}", pairs, features[label].names, reading)


class _Column(Sequence[Image.Image]):
    """The pictures of another library's data set, each decoded when it is asked for."""

    def __init__(self, rows: Any, key: str | int) -> None:  # noqa: ANN401 - a data set of whichever library
        self.rows, self.key = rows, key

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:  # noqa: ANN401 - a picture for a number
        if number >= len(self):
            raise IndexError(number)
        return self.rows[number][self.key]

    @classmethod
    def pairs(cls, rows: Any) -> Pairs:  # noqa: ANN401
        """Pictures and labels of a data set of (picture, label)."""
        known = getattr(rows, "targets", None)
        labels = rows.labels if known is None and hasattr(rows, "labels") else known
        return cls(rows, 0), [int(each) for each in (labels if labels is not None else (row[1] for row in rows))]


def _installed(package: str, module: str, name: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{package} is not installed here ({error}), which {name} needs: pip install {package}"
        ) from error


def _of_pictures(name: str, parts: list[Pairs], names: Iterable[str] | None, reading: Reading) -> Source:
    first = parts[0][0][0]
    if not isinstance(first, Image.Image | str):
        raise DataError(f"{name} gives a {type(first).__name__} for its first image; expected a picture of Pillow")
    splits = [
        whole_split(array_of(pictures, size=reading.size, channels=reading.channels), _numbers(name, labels))
        for pictures, labels in parts
    ]
    most = 1 + max(int(split.labels.max()) for split in splits)
    return _source(name, splits, tuple(map(str, names if names is not None else range(most))), reading)


def _numbers(name: str, labels: Sequence[int]) -> np.ndarray:
    try:
        return labels_of(np.array(labels, np.int64)).numpy()
    except ValueError as error:  # -1 stands for an unknown class in some libraries' test parts
        raise DataError(f"{name}: {error}") from error


def _source(name: str, splits: list[Split], classes: tuple[str, ...], reading: Reading) -> Source:
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise DataError(f"{name} has {len(classes)} classes; expected 2 to {MOST_CLASSES}")
    if not 1 <= splits[0].images.shape[1] <= 4:
        raise DataError(f"{name} has images of {splits[0].images.shape[1]} channels; expected 1 to 4")
    if len({split.images.shape[1:] for split in splits}) > 1:
        shapes = " and ".join("x".join(map(str, split.images.shape[1:])) for split in splits)
        raise DataError(f"{name} has images of {shapes} for training and for the test: give both one shape")
    if len(splits) == 2:
        return Source(name, splits[0], splits[1], classes)
    (whole,) = splits
    tested = max(1, round(reading.test_share * len(whole)))
    test, train = divide(whole, tested, len(whole) - tested, "test", reading.seed)
    return Source(name, train, test, classes)


READERS: dict[str, Callable[[str, Reading], Source]] = {
    "imagefolder": read_folder,
    "npz": read_npz,
    "torchvision": read_torchvision,
    "hf": read_hub,
}
