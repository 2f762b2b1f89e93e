import gzip
import os
import pickle

import numpy as np
import pytest

from stages.data import formats
from stages.data.formats import (
    DataError,
    read_binary_batch,
    read_idx,
    read_idx_labels,
    read_python_batch,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
LABELS = [0, 9, 3, 3]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(formats, "BATCH_IMAGES", len(IMAGES))


def idx(array, magic=None):
    header = magic or bytes((0, 0, 8, array.ndim))
    return header + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def binary(images=IMAGES, labels=LABELS):
    return np.hstack([np.array(labels, np.uint8)[:, None], images.reshape(len(images), -1)]).tobytes()


def python(**changes):
    return pickle.dumps({"data": IMAGES.reshape(4, -1), "labels": LABELS} | changes, protocol=2)


def test_an_idx_file_is_read_plain_and_packed(tmp_path):
    array = RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "plain", (5, 4, 3)), array)
    np.testing.assert_array_equal(read_idx(tmp_path / "packed.gz", (5, 4, 3)), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"starts with the bytes \(none\)"),
        (b"\x00\x00\x08", "starts with the bytes 000008;"),
        (idx(np.zeros((5, 4), np.uint8), magic=bytes((0, 0, 13, 2))), "starts with the bytes 00000d02"),
        (idx(np.zeros((5, 4, 1), np.uint8)), "in 2 dimensions starts with 00000802"),
        (idx(np.zeros((5, 4), np.uint8))[:9], "truncated: 9 bytes, expected 32"),
        (idx(np.zeros((5, 4), np.uint8))[:-1], "truncated: 31 bytes, expected 32"),
        (idx(np.zeros((5, 4), np.uint8)) + b"!", "longer than it should be: 33 bytes"),
        (idx(np.zeros((4, 5), np.uint8)), "holds 4 x 5 bytes, expected 5 x 4"),
    ],
)
def test_an_idx_file_that_is_not_what_it_says_is_named(tmp_path, content, message):
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"train-images .*{message}.*--data\.download"):
        read_idx(path, (5, 4))


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "flipped bit"])
def test_a_packed_file_that_is_damaged_is_named(tmp_path, damage):
    packed = bytearray(gzip.compress(idx(RNG.integers(0, 256, (5, 4), dtype=np.uint8))))
    if damage == "flipped bit":
        packed[-6] ^= 1  # in the checksum of the content
    path = tmp_path / "images.gz"
    path.write_bytes({"truncated": packed[:-12], "no gzip": b"<html>"}.get(damage, packed))
    with pytest.raises(DataError, match=r"images\.gz cannot be read: .*--data\.root"):
        read_idx(path, (5, 4))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent cannot be read: .*No such file"):
        read_idx(tmp_path / "absent", (1,))


def test_a_label_above_nine_is_named_in_every_format(tmp_path):
    path = tmp_path / "file"
    wrong = [0, 9, 10, 3]
    readers = [
        (idx(np.array(wrong, np.uint8)), lambda file: read_idx_labels(file, 4)),
        (binary(labels=wrong), read_binary_batch),
        (python(labels=wrong), read_python_batch),
    ]
    for content, read in readers:
        path.write_bytes(content)
        with pytest.raises(DataError, match="gives image 2 the label 10; labels are 0 to 9"):
            read(path)


@pytest.mark.parametrize("label", [-1, 2**70])
def test_a_label_that_no_byte_holds_is_named(tmp_path, label):
    (tmp_path / "batch").write_bytes(python(labels=[0, label, 1, 2]))
    with pytest.raises(DataError, match=f"gives image 1 the label {label}"):
        read_python_batch(tmp_path / "batch")


def test_both_layouts_of_a_batch_hold_the_same(tmp_path):
    (tmp_path / "batch.bin").write_bytes(binary())
    (tmp_path / "batch").write_bytes(python())
    for images, labels in (read_binary_batch(tmp_path / "batch.bin"), read_python_batch(tmp_path / "batch")):
        np.testing.assert_array_equal(images, IMAGES)
        assert images.dtype == np.uint8
        assert labels.tolist() == LABELS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (binary()[:-1], "truncated: 12291 bytes, expected 12292"),
        (binary() + b"!", "longer than it should be"),
    ],
)
def test_a_binary_batch_of_another_size_is_named(tmp_path, content, message):
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"test_batch\.bin is {message}"):
        read_binary_batch(tmp_path / "test_batch.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a batch of CIFAR-10"),
        (python()[:-40], "cannot be read as a batch of CIFAR-10"),
        (b"not a pickle", "cannot be read as a batch of CIFAR-10"),
        (pickle.dumps([1, 2]), "no array under 'data'"),
        (python(data=[1, 2]), "no array under 'data'"),
        (python(data=np.zeros((4, 3071), np.uint8)), r"shape \(4, 3071\) under 'data'"),
        (python(data=np.zeros((4, 3072), np.float32)), "type 'f4' where only uint8 belongs"),
        (python(labels=None), "no list of 4 whole numbers"),
        (python(labels=LABELS[:3]), "no list of 4 whole numbers"),
        (python(labels=[0, 1, 2, 1.5]), "no list of 4 whole numbers"),
    ],
)
def test_a_python_batch_that_is_not_what_it_says_is_named(tmp_path, content, message):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=rf"test_batch .*{message}.*--data\.download"):
        read_python_batch(tmp_path / "test_batch")


def test_a_python_batch_with_a_command_in_it_is_refused_and_not_run(tmp_path):
    class Command:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "witness"),)

    (tmp_path / "test_batch").write_bytes(python(labels=Command()))
    with pytest.raises(DataError, match=r"test_batch .*posix\.mkdir.*not run"):
        read_python_batch(tmp_path / "test_batch")
    assert not (tmp_path / "witness").exists()
