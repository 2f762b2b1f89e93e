"""What users hand in as images and labels: right, or refused with what to do."""

import numpy as np
import pytest
import torch

from stages.data.images import labels_of, paired, pixels_of

LEVELS = np.arange(2 * 3 * 5 * 4, dtype=np.uint8).reshape(2, 3, 5, 4)
IMAGES = torch.from_numpy(LEVELS)


@pytest.mark.parametrize(
    "given",
    [
        LEVELS,
        IMAGES,
        LEVELS / 255,
        (LEVELS / 255).astype(np.float32),
        (LEVELS / 255).astype(np.float16),
        (LEVELS / 255).astype(">f4"),
        (LEVELS / 255).astype(np.longdouble),
        (LEVELS / 255).tolist(),
        IMAGES.float() * (1 / 255),
        (IMAGES.float() / 255).requires_grad_(True),
        np.ascontiguousarray(LEVELS[::-1])[::-1],
        LEVELS.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1),
        np.broadcast_to(LEVELS, LEVELS.shape),
    ],
    ids=[
        *("bytes", "tensor", "float64", "float32", "float16", "big-endian", "longdouble", "lists", "by a reciprocal"),
        *("with a gradient", "reversed axis", "strided", "read-only"),
    ],
)
def test_8_bit_images_come_back_exactly_whatever_holds_them(given):
    assert torch.equal(pixels_of(given), IMAGES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (IMAGES.float(), r"lie in \[0, 119\]; expected \[0, 1\]: divide by 255"),
        (IMAGES / 255 - 0.2, "move normalisation into the model"),
        (IMAGES / 510, "not all whole multiples of 1/255"),
        ((IMAGES / 255).bfloat16(), "the bfloat16 images are not all whole multiples"),
        (torch.where(IMAGES == 7, np.nan, IMAGES / 255), "1 of 2 images hold NaN or infinity"),
        (IMAGES.long(), "the images are int64; expected uint8, or floats"),
        (LEVELS.astype(np.uint16), "the images are int64"),
        (LEVELS > 60, "the images are bool"),
        ((IMAGES / 255).to(torch.complex64), "the images are complex64"),
        (IMAGES[:, 0], r"\[2, 5, 4\]; expected \[image, channel, height, width\]: images\[:, None\]"),
        (IMAGES[0, 0], r"\[5, 4\]; expected"),
        (IMAGES[:0], "with at least one image"),
        (IMAGES[:, :0], "with at least one image"),
        (torch.zeros(2, 28, 28, 1), r"looks like \[image, height, width, channel\]"),
        ([[1, 2], [3]], "the images are no array"),
        ("images.npy", "the images are a str"),
        ({"image": LEVELS}, "the images are a dict of object"),
        (None, "the images are a NoneType of object"),
    ],
)
def test_images_that_are_none_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        pixels_of(given)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64, np.float16, np.float64])
def test_class_numbers_of_any_type_are_taken(kind):
    assert torch.equal(labels_of(np.array([0, 2, 1], kind), classes=3), torch.tensor([0, 2, 1]))
    assert torch.equal(labels_of(np.array([True, False])), torch.tensor([1, 0]))
    assert torch.equal(labels_of([2, 0]), torch.tensor([2, 0]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2, 3], r"lie in \[1, 3\]; expected 0 to 2 for 3 classes: they count from 1, so use labels - 1"),
        ([0, 3], r"lie in \[0, 3\]; expected 0 to 2"),
        ([0, -1], r"lie in \[-1, 0\]; .*leave out images without a class"),
        (np.array([255, 0], np.uint8), r"lie in \[0, 255\]"),
        ([0.5, 1.0], "float64 that are not all whole numbers"),
        ([np.nan, 1.0], "not all whole numbers"),
        ([1j, 2j], "complex128 that are not all whole numbers"),
        (np.eye(3), r"have shape \[3, 3\]; expected \[image\].*labels.argmax\(1\) of one-hot rows"),
        ([[1], [2]], r"have shape \[2, 1\]; .*labels.flatten\(\)"),
        (2, r"have shape \[\]"),
        ([], "there are no labels"),
        (["cat", "dog"], "the labels are a list of <U3"),
    ],
)
def test_labels_that_name_no_class_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        labels_of(given, classes=3)


def test_every_image_has_a_label():
    with pytest.raises(ValueError, match="2 images and 3 labels"):
        paired(LEVELS, [0, 1, 2])
    with pytest.raises(ValueError, match="expected 0 or above"):
        paired(LEVELS, [0, -1])
