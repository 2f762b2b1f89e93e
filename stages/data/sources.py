"""Where each data set comes from: the embedded digits, MNIST's and CIFAR-10's files below a root."""

from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from stages.data.formats import DataError, read_binary_batch, read_idx, read_idx_labels, read_python_batch
from stages.data.splits import Split, divide
from stages.fingerprint import array_fingerprint

DIGITS_TEST_IMAGES = 360  # a fifth of 1,797
DIGIT_NAMES = tuple(str(digit) for digit in range(10))
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

MNIST_SHAPES: dict[str, tuple[int, ...]] = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
CIFAR10_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
CIFAR10_LAYOUTS = {"cifar-10-batches-bin": ".bin", "cifar-10-batches-py": ""}

WAYS_OUT = (
    "Pass --data.download to fetch it, or name the folder where torchvision left it by --data.root "
    "or the environment variable RAP_DATA_ROOT"
)

# The labels of the test set in the copy of CIFAR-10 whose pixels went through JPEG (quality 75) once; it
# orders its images differently from the original, so these labels tell it apart whatever the decoder did
# to a pixel. The reverse is not checked (the binary layout has no published checksum): any other file of
# the right form is taken for CIFAR-10.
JPEG_TEST_LABELS = "85129295c62f9837d8d0094b386319a6"


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as it comes: its honest name, its own train and test part, and the names of its classes."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]


def whole_split(images: UInt8[np.ndarray, "image channel height width"], labels: Int64[np.ndarray, " image"]) -> Split:
    """All images of a file as one split, copied where they are a read-only view (torch warns of those)."""
    return Split(np.require(images, requirements=["C", "W"]), labels, np.arange(len(labels)))


def read_digits() -> Source:
    """scikit-learn's 1,797 digits of 8x8 pixels; rows count in its order, for train and test alike."""
    # its file, since importing its load_digits takes over a second and 130 MB
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",")
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 .. 16
    whole = whole_split(pixels.reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64))
    test, train = divide(whole, DIGITS_TEST_IMAGES, len(whole) - DIGITS_TEST_IMAGES, "test", "digits")
    return Source("digits", train, test, DIGIT_NAMES)


def read_mnist(root: Path, *, download: bool) -> Source:
    """MNIST from ROOT/MNIST/raw or ROOT, plain or .gz. Raises DataError when a file is absent or wrong."""
    files = find_mnist(root)
    if download and len(files) < len(MNIST_SHAPES):
        from stages.data.download import download_mnist  # what fetches is needed by few, and some machines lack it

        download_mnist(root)
        files = find_mnist(root)
    if missing := [name for name in MNIST_SHAPES if name not in files]:
        raise DataError(
            f"MNIST is not complete: {', '.join(missing)} (or .gz) found neither in "
            f"{root / 'MNIST' / 'raw'} nor in {root}. {WAYS_OUT}"
        )
    return Source("MNIST", read_mnist_part(files, "train"), read_mnist_part(files, "t10k"), DIGIT_NAMES)


def read_mnist_part(files: dict[str, Path], part: str) -> Split:
    """The images and labels of one part, train or t10k."""
    images, labels = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    return whole_split(
        read_idx(files[images], MNIST_SHAPES[images])[:, None],
        read_idx_labels(files[labels], MNIST_SHAPES[labels][0]),
    )


def find_mnist(root: Path) -> dict[str, Path]:
    """Where each file of MNIST is, in the order of MNIST_SHAPES, without those that are nowhere."""
    found = {}
    for name in MNIST_SHAPES:
        places = [folder / f"{name}{end}" for folder in (root / "MNIST" / "raw", root) for end in ("", ".gz")]
        if present := [place for place in places if place.is_file()]:
            found[name] = present[0]
    return found


def read_cifar10(root: Path, *, download: bool) -> Source:
    """CIFAR-10 from its binary or its Python layout below ROOT, both with the same result.

    Raises DataError when a batch is absent or wrong.
    """
    batches = find_cifar10(root)
    if download and not batches:
        from stages.data.download import download_cifar10

        download_cifar10(root)
        batches = find_cifar10(root)
    if not batches:
        raise DataError(f"CIFAR-10 is not complete: {describe_cifar10(root)}. {WAYS_OUT}")
    read = read_binary_batch if batches[0].suffix else read_python_batch
    parts = [read(path) for path in batches]
    train = whole_split(
        np.concatenate([images for images, _ in parts[:-1]]),
        np.concatenate([labels for _, labels in parts[:-1]]),
    )
    test = whole_split(*parts[-1])
    jpeg = array_fingerprint(test.labels) == JPEG_TEST_LABELS
    return Source("CIFAR-10 (JPEG q75)" if jpeg else "CIFAR-10", train, test, CIFAR10_NAMES)


def find_cifar10(root: Path) -> list[Path]:
    """The six batches of the first complete layout, the test batch last; empty when none is complete."""
    for folder, end in CIFAR10_LAYOUTS.items():
        paths = [root / folder / f"{name}{end}" for name in CIFAR10_BATCHES]
        if all(path.is_file() for path in paths):
            return paths
    return []


def describe_cifar10(root: Path) -> str:
    """What each layout's folder lacks, for the error that says so."""
    lacks = []
    for folder, end in CIFAR10_LAYOUTS.items():
        names = [f"{name}{end}" for name in CIFAR10_BATCHES if not (root / folder / f"{name}{end}").is_file()]
        lacks.append(f"{root / folder} lacks {', '.join(names)}")
    return "; ".join(lacks)
