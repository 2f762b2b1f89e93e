import os
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.data import sources
from stages.data.datasets import DataConfig, channel_statistics, load_data
from stages.data.formats import DataError
from stages.fingerprint import array_fingerprint


@pytest.fixture
def real_data():
    """The folder with real MNIST and CIFAR-10."""
    if "RAP_DATA_ROOT" not in os.environ:
        pytest.skip("RAP_DATA_ROOT is not set: it names the folder with MNIST/raw and cifar-10-batches-*")
    return Path(os.environ["RAP_DATA_ROOT"])


def fingerprints(data):
    return [split.fingerprint for split in (data.train, data.holdout, data.test)]


def test_the_digits_and_their_splits_never_change():
    data = load_data(DataConfig())
    assert (data.name, data.channels, data.size, data.classes) == ("digits", 1, (8, 8), tuple("0123456789"))
    assert fingerprints(data) == [
        "a461938dc07e2bba5dd7904bcace8c6e",
        "795c446e8329fd7864dd60c58f6abc64",
        "ede0e2dde52256fac668df7a10e7566e",
    ]


def test_mnist_and_its_splits_never_change(real_data):
    data = load_data(DataConfig(name="mnist", root=str(real_data)))
    assert (data.name, data.channels, data.size, data.classes) == ("MNIST", 1, (28, 28), tuple("0123456789"))
    assert torch.from_numpy(data.test.images).shape == (10_000, 1, 28, 28), "torch takes it without a warning"
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert fingerprints(data) == [
        "e92f021c527390758d14dfc97ec4e89a",
        "dc1457d801a98688852396e2dfe3e83b",
        "7b552fac5e275c46925305ca22d3e1a0",
    ]


def test_cifar10_is_the_same_from_both_layouts_and_its_splits_never_change(real_data, tmp_path):
    (tmp_path / "cifar-10-batches-py").symlink_to(real_data / "cifar-10-batches-py")
    binary = load_data(DataConfig(name="cifar10", root=str(real_data)))
    python = load_data(DataConfig(name="cifar10", root=str(tmp_path)))
    assert fingerprints(binary) == fingerprints(python)
    for split in (python.test, binary.test, binary.train):
        assert torch.from_numpy(split.images).shape[1:] == (3, 32, 32), "torch takes it without a warning"
    assert (binary.channels, binary.size, binary.classes[:2]) == (3, (32, 32), ("airplane", "automobile"))
    # The pixels depend on the JPEG decoder that wrote the files, labels and rows do not.
    parts = (binary.train, binary.holdout, binary.test)
    assert [array_fingerprint(part.labels, part.rows) for part in parts] == [
        "f88f49a6951d5761b94d0bdbe43800ee",
        "240f85d281b87c19a015a8f324ea0fb8",
        "60a46aac33731d46c77a0cbe46a4fc3d",
    ]


def test_cifar10_that_went_through_jpeg_is_called_so(real_data, monkeypatch):
    config = DataConfig(name="cifar10", root=str(real_data))
    assert load_data(config).name == "CIFAR-10 (JPEG q75)"
    monkeypatch.setattr(sources, "JPEG_TEST_LABELS", "of another order")
    assert load_data(config).name == "CIFAR-10"


def test_packed_files_directly_in_the_root_are_found(real_data, tmp_path):
    for name in sources.MNIST_SHAPES:
        (tmp_path / f"{name}.gz").symlink_to(real_data / "MNIST" / "raw" / f"{name}.gz")
    packed = load_data(DataConfig(name="mnist", root=str(tmp_path)))
    assert fingerprints(packed) == fingerprints(load_data(DataConfig(name="mnist", root=str(real_data))))


def test_digits_are_rounded_to_bytes():
    data = load_data(DataConfig())
    assert np.unique(data.train.images).tolist() == [round(255 * level / 16) for level in range(17)]


def test_no_image_is_in_two_splits_and_none_is_lost():
    data = load_data(DataConfig(holdout_images=100))
    rows = np.concatenate([data.train.rows, data.holdout.rows, data.test.rows])
    assert sorted(rows) == list(range(1797))
    assert len(data.holdout) == 100


def test_fewer_training_images_are_a_part_of_more_and_leave_the_other_splits_alone():
    whole, some, few = (load_data(DataConfig(train_images=count)) for count in (None, 500, 50))
    assert set(few.train.rows) < set(some.train.rows) < set(whole.train.rows)
    assert (len(some.train), len(few.train)) == (500, 50)
    assert fingerprints(few)[1:] == fingerprints(whole)[1:]


def test_mean_and_deviation_are_those_of_the_training_images():
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 5, 4), dtype=np.uint8)
    images[:, 1] //= 3
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 2, 3)), rtol=1e-12)
    data = load_data(DataConfig(train_images=30))
    assert (data.mean, data.std) == channel_statistics(data.available.images)
    assert set(data.train.rows) < set(data.available.rows)
    assert not set(data.available.rows) & set(data.holdout.rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"holdout_images": 0}, "data.holdout_images is 0; it must be at least 1"),
        ({"train_images": 0}, "data.train_images is 0; it must be at least 1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"data\.name is 'svhn'; allowed are digits, mnist, cifar10"):
        DataConfig(name="svhn")


@pytest.mark.parametrize("settings", [{"holdout_images": 1437}, {"train_images": 1278}])
def test_asking_for_more_images_than_there_are_is_refused(settings):
    with pytest.raises(DataError, match="digits has 1437 training images, too few for"):
        load_data(DataConfig(**settings))


def test_absent_files_of_mnist_are_named_with_every_place_and_way_out(tmp_path):
    (tmp_path / "train-labels-idx1-ubyte.gz").touch()
    with pytest.raises(DataError) as caught:
        load_data(DataConfig(name="mnist", root=str(tmp_path)))
    message = str(caught.value)
    for part in ("train-images-idx3-ubyte", str(tmp_path / "MNIST" / "raw"), "--data.download", "--data.root"):
        assert part in message
    assert "train-labels-idx1-ubyte" not in message


def test_absent_batches_of_cifar10_are_named_with_every_place_and_way_out(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin").touch()
    with pytest.raises(DataError) as caught:
        load_data(DataConfig(name="cifar10", root=str(tmp_path)))
    message = str(caught.value)
    for part in ("bin lacks data_batch_2.bin,", "py lacks data_batch_1,", "--data.download", "RAP_DATA_ROOT"):
        assert part in message


def test_the_root_is_the_flag_then_the_environment_then_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("RAP_DATA_ROOT", "/from/environment")
    assert DataConfig(root="~/mine").folder == Path("/home/someone/mine")
    assert DataConfig().folder == Path("/from/environment")
    monkeypatch.delenv("RAP_DATA_ROOT")
    assert DataConfig().folder == Path("/home/someone/datasets")
