"""Anybody's data: read into 8-bit images once, split by a seed, or refused with what to do."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stages.data.datasets import DataConfig, ImageData, load_data
from stages.data.formats import DataError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (40, 1, 28, 36), dtype=np.uint8)
LABELS = np.arange(40) % 2


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "mine.npz", **arrays)
    return f"npz:{folder / 'mine.npz'}"


def pictures(folder: Path, *, count: int = 6, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> Path:
    """A folder of pictures in three classes, each of a colour of its own."""
    for number, name in enumerate(("cat", "dog", "owl")):
        (folder / name).mkdir(parents=True)
        for place in range(count):
            colour = (80 * number, place, 0) if mode == "RGB" else 80 * number + place
            Image.new(mode, size, colour).save(folder / name / f"{place}.png")
    return folder


def everything(data: ImageData) -> list[int]:
    return sorted([*data.train.rows, *data.holdout.rows, *data.test.rows])


def test_images_that_are_not_square_in_two_classes_are_split_by_the_seed(tmp_path: Path):
    name = npz(tmp_path, images=IMAGES, labels=LABELS)
    data = load_data(DataConfig(name=name))
    assert (data.name, data.shape, data.size, data.classes) == ("npz mine", (1, 28, 36), (28, 36), ("0", "1"))
    assert (len(data.train), len(data.holdout), len(data.test)) == (26, 6, 8)
    assert everything(data) == list(range(40))
    assert np.array_equal(data.test.images, IMAGES[data.test.rows])
    assert np.array_equal(data.test.labels, LABELS[data.test.rows])
    assert load_data(DataConfig(name=name)).test.fingerprint == data.test.fingerprint
    other = load_data(DataConfig(name=name, split_seed=1))
    assert set(other.test.rows) != set(data.test.rows)


def test_all_images_can_be_test_images(tmp_path: Path):
    data = load_data(DataConfig(name=npz(tmp_path, x=IMAGES, y=LABELS), test_share=1.0))
    assert (len(data.test), len(data.train)) == (40, 0)
    assert data.shape == (1, 28, 36)
    assert 0.4 < data.mean[0] < 0.6


def test_a_test_part_of_ones_own_stays_apart(tmp_path: Path):
    parts = {"train_images": IMAGES[:30], "train_labels": LABELS[:30, None], "test_images": IMAGES[30:]}
    data = load_data(DataConfig(name=npz(tmp_path, **parts, test_labels=LABELS[30:, None].astype(np.uint8))))
    assert np.array_equal(data.test.images, IMAGES[30:])
    assert everything(data) == sorted([*range(30), *range(10)])


CLEAN = {"images": IMAGES, "labels": LABELS}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "other names": ({"pixels": IMAGES}, "holds pixels; expected images and labels"),
    "one-hot": ({**CLEAN, "labels": np.eye(2)[LABELS]}, "one-hot rows"),
    "labels from 1": ({**CLEAN, "labels": LABELS + 1}, "no image of class 0: use labels - 1"),
    "one class": ({**CLEAN, "labels": 0 * LABELS}, "has 1 classes; expected 2 to 1000"),
    "bytes in floats": ({**CLEAN, "images": IMAGES.astype(np.float32)}, r"lie in \[0, 255\]; .*divide by 255"),
    "normalised": ({**CLEAN, "images": IMAGES / 127.5 - 1}, "move normalisation into the model"),
    "channels last": (
        {**CLEAN, "images": np.moveaxis(IMAGES, 1, -1)},
        r"transpose\(0, 3, 1, 2\).*--data.channels-last",
    ),
    "too many channels": ({**CLEAN, "images": np.repeat(IMAGES, 5, 1)}, "of 5 channels; expected 1 to 4"),
    "fewer labels": ({**CLEAN, "labels": LABELS[:9]}, "40 images and 9 labels"),
    "words": ({**CLEAN, "labels": LABELS.astype(str)}, "labels are a ndarray of <U"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_are_no_images_and_classes_are_refused_with_what_to_do(case: str, tmp_path: Path):
    arrays, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name=npz(tmp_path, **arrays)))


def test_channels_last_are_taken_where_the_flag_says_so(tmp_path: Path):
    name = npz(tmp_path, images=np.moveaxis(np.repeat(IMAGES, 2, 1), 1, -1), labels=LABELS.astype(np.int8))
    data = load_data(DataConfig(name=name, channels_last=True))
    assert data.shape == (2, 28, 36)
    assert np.array_equal(data.test.images[:, 0], IMAGES[data.test.rows, 0])


def test_classes_that_do_not_occur_are_counted_where_the_flag_says_so(tmp_path: Path):
    name = npz(tmp_path, images=IMAGES, labels=LABELS + 1)
    assert len(load_data(DataConfig(name=name, classes=1000)).classes) == 1000
    with pytest.raises(DataError, match=r"has the label 2; --data.classes 2 allow 0 to 1"):
        load_data(DataConfig(name=name, classes=2))


@pytest.mark.parametrize("content", [b"", b"no file of arrays"])
def test_what_is_no_file_of_arrays_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read .*: give a file that numpy.savez wrote"):
        load_data(DataConfig(name=f"npz:{tmp_path / 'mine.npz'}"))
    with pytest.raises(DataError, match="FileNotFoundError"):
        load_data(DataConfig(name=f"npz:{tmp_path / 'nowhere.npz'}"))


def test_pickled_objects_are_not_read(tmp_path: Path):
    name = npz(tmp_path, images=np.array([object()]), labels=LABELS)
    with pytest.raises(DataError, match="allow_pickle"):
        load_data(DataConfig(name=name))


def test_a_folder_of_pictures_has_its_folders_as_classes(tmp_path: Path):
    data = load_data(DataConfig(name=f"imagefolder:{pictures(tmp_path / 'animals')}"))
    assert (data.name, data.shape, data.classes) == ("imagefolder animals", (3, 9, 12), ("cat", "dog", "owl"))
    assert len(everything(data)) == 18
    for split in (data.train, data.holdout, data.test):
        assert np.array_equal(split.images[:, 0, 0, 0], 80 * split.labels)


def test_a_folder_in_two_parts_keeps_them(tmp_path: Path):
    pictures(tmp_path / "train")
    pictures(tmp_path / "val", count=2)
    data = load_data(DataConfig(name=f"imagefolder:{tmp_path}"))
    assert (len(data.train) + len(data.holdout), len(data.test)) == (18, 6)


def test_pictures_of_any_size_are_resized_and_cropped_as_asked(tmp_path: Path):
    pictures(tmp_path)
    Image.new("L", (50, 7), 255).save(tmp_path / "cat" / "wide.png")
    name = f"imagefolder:{tmp_path}"
    with pytest.raises(DataError, match=r"such as 9x12 and 7x50 \(.*wide.png\): give --data.image-size"):
        load_data(DataConfig(name=name))
    assert load_data(DataConfig(name=name, image_size=(8,))).shape == (3, 8, 8)
    data = load_data(DataConfig(name=name, image_size=(28, 36), channels=4))
    assert data.shape == (4, 28, 36)
    assert data.test.images[:, 3].min() == 255


def test_a_picture_is_cropped_to_its_centre(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        columns = np.repeat(np.arange(30, dtype=np.uint8)[None], 10, 0)
        Image.fromarray(columns).save(tmp_path / name / "0.png")
    data = load_data(DataConfig(name=f"imagefolder:{tmp_path}", image_size=(10,), test_share=1.0))
    assert data.test.images[0, 0, 0].tolist() == list(range(10, 20))


def test_grey_pictures_have_one_channel(tmp_path: Path):
    assert load_data(DataConfig(name=f"imagefolder:{pictures(tmp_path, mode='L')}")).shape == (1, 9, 12)


def test_a_folder_without_pictures_or_with_a_broken_one_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="is no folder: give one that holds a folder of pictures for each class"):
        load_data(DataConfig(name=f"imagefolder:{tmp_path / 'nowhere'}"))
    with pytest.raises(DataError, match="holds no pictures in folders of classes"):
        load_data(DataConfig(name=f"imagefolder:{tmp_path}"))
    folder = pictures(tmp_path)
    for spoilt in ("dog/0.png", "cat/0.png"):  # the second is the first that is read
        (folder / spoilt).write_bytes(b"no picture")
        with pytest.raises(DataError, match=rf"{spoilt} cannot be read as a picture"):
            load_data(DataConfig(name=f"imagefolder:{tmp_path}"))


@pytest.mark.parametrize(
    "found",
    [lambda count: (IMAGES[:count], LABELS[:count]), lambda count: {"x": IMAGES[:count], "y": LABELS[:count]}],
    ids=["a pair", "a dict"],
)
def test_a_function_returns_images_and_labels(found: Callable, monkeypatch: pytest.MonkeyPatch):
    module: Any = types.ModuleType("my_data")
    module.load = found
    monkeypatch.setitem(sys.modules, "my_data", module)
    data = load_data(DataConfig(name="my_data:load", arguments='{"count": 20}'))
    assert (data.name, len(everything(data))) == ("my_data load", 20)
    with pytest.raises(DataError, match=r"raised an error instead of returning images .TypeError"):
        load_data(DataConfig(name="my_data:load"))
    module.load = sys.exit
    with pytest.raises(DataError, match=r"raised an error instead of returning images .SystemExit"):
        load_data(DataConfig(name="my_data:load"))


def fake_torchvision() -> dict[str, Any]:
    torchvision, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")

    class Shapes(list):
        classes = ("line", "ring")

        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            count = {"train": 10, "test": 4}[split]
            super().__init__((Image.new("RGB", (5, 5), (0, number, 0)), number % 2) for number in range(count))
            self.root, self.download = root, download

    class Made(Shapes):  # as FakeData: made, not read
        def __init__(self, size: int = 12) -> None:
            super().__init__("nowhere")
            self.extend(self[:2])

    vars(datasets).update(Shapes=Shapes, Made=Made)
    return {"torchvision": torchvision, "torchvision.datasets": datasets}


@pytest.mark.parametrize("keep", [np.asarray, torch.from_numpy])
def test_the_images_that_a_function_keeps_stay_as_they_are(keep: Callable, monkeypatch: pytest.MonkeyPatch):
    kept = {"x_train": keep(IMAGES.copy()), "x_test": keep(IMAGES.copy()), "y_train": LABELS, "y_test": LABELS}
    module: Any = types.ModuleType("keeps_its_data")
    module.load = lambda: kept
    monkeypatch.setitem(sys.modules, module.__name__, module)
    data = load_data(DataConfig(name="keeps_its_data:load", train_images=10))
    for split in (data.train, data.available, data.holdout):
        assert np.array_equal(split.images, IMAGES[split.rows])
    assert set(data.train.rows) < set(data.available.rows)
    assert np.array_equal(kept["x_train"], IMAGES)


def test_a_data_set_of_torchvision_is_read_in_its_own_parts_or_that_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name, module in fake_torchvision().items():
        monkeypatch.setitem(sys.modules, name, module)
    data = load_data(DataConfig(name="torchvision:Shapes", root=str(tmp_path)))
    assert (data.shape, data.classes, len(data.test)) == ((3, 5, 5), ("line", "ring"), 4)
    assert data.test.images[:, 1, 0, 0].tolist() == [0, 1, 2, 3]
    part = load_data(DataConfig(name="torchvision:Shapes", root=str(tmp_path), arguments='{"split": "train"}'))
    assert everything(part) == list(range(10))
    assert everything(load_data(DataConfig(name="torchvision:Made"))) == list(range(12))
    with pytest.raises(DataError, match=r"torchvision\.datasets has no Cubes"):
        load_data(DataConfig(name="torchvision:Cubes"))
    with pytest.raises(DataError, match=r"could not be read from .*TypeError.*--data.arguments"):
        load_data(DataConfig(name="torchvision:Shapes", arguments='{"colour": 3}'))


def test_a_data_set_of_the_hub_is_read_by_its_columns(monkeypatch: pytest.MonkeyPatch):
    class Rows(list):
        def __init__(self, rows: Any) -> None:
            super().__init__(rows)
            names = {"names": ["line", "ring", "star"]}
            self.features = {"img": type("Image", (), {})(), "fine": type("ClassLabel", (), names)()}

        def __getitem__(self, key: Any) -> Any:
            return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def rows(count: int) -> Rows:
        return Rows({"img": Image.new("L", (6, 4), number), "fine": number % 3} for number in range(count))

    hub = SimpleNamespace(load_dataset=lambda name, **arguments: {"train": rows(12), "validation": rows(5)})
    monkeypatch.setitem(sys.modules, "datasets", hub)
    data = load_data(DataConfig(name="hf:someone/shapes"))
    assert (data.shape, data.classes, len(data.test)) == ((1, 4, 6), ("line", "ring", "star"), 5)
    assert np.array_equal(data.test.labels, np.arange(5) % 3)

    hidden = rows(12)
    hidden[3]["fine"] = -1  # as the hub has it where labels are kept secret
    hub.load_dataset = lambda name: {"train": rows(12), "test": hidden}
    with pytest.raises(DataError, match=r"hf someone/shapes: the labels lie in \[-1, 2\].*leave out images without"):
        load_data(DataConfig(name="hf:someone/shapes"))


@pytest.mark.parametrize("name", ["torchvision:SVHN", "hf:someone/shapes"])
def test_a_library_that_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch):
    for module in ("torchvision", "torchvision.datasets", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)  # so that importing it fails
    with pytest.raises(DataError, match=r"is not installed here .*: pip install (torchvision|datasets)"):
        load_data(DataConfig(name=name))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "imagefolder:"}, "data.name is 'imagefolder:'; allowed are digits, mnist, cifar10, imagefolder:PATH"),
        ({"image_size": (3, 4, 5)}, "data.image_size is .*one number of pixels, or height and width"),
        ({"image_size": (0,)}, "data.image_size"),
        ({"channels": 2}, "data.channels is 2; allowed are 1, 3 and 4"),
        ({"classes": 1}, "data.classes is 1; it must be at least 2"),
        ({"test_share": 0.0}, "data.test_share is 0; it must be above 0 and at most 1"),
        ({"arguments": "split=train"}, "data.arguments is 'split=train', which is no JSON"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_the_same_data_elsewhere_are_the_same_to_a_recipe():
    here, there = (DataConfig(name=f"npz:{folder}/mine.npz", root=folder) for folder in ("/here", "/there"))
    assert here.identity == there.identity != DataConfig(name="npz:/here/mine.npz", split_seed=1).identity
