import numpy as np
import pytest
import torch

from stages.data.augmentation import augment, draw_augmentation


def by_the_book(image, down, right, flip):
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
    crop = padded[:, down : down + image.shape[1], right : right + image.shape[2]]
    return crop[:, :, ::-1] if flip else crop


def test_augmentation_pads_crops_and_mirrors_each_image_by_its_own_parameters():
    images = np.random.default_rng(0).integers(1, 256, (6, 3, 8, 7), dtype=np.uint8)
    parameters = np.array([[0, 0, 0], [8, 8, 1], [4, 4, 1], [0, 8, 0], [3, 5, 1], [8, 1, 0]], np.int16)
    augmented = augment(torch.from_numpy(images), torch.from_numpy(parameters))
    expected = [by_the_book(image, *values) for image, values in zip(images, parameters, strict=True)]
    np.testing.assert_array_equal(augmented.numpy(), np.stack(expected))


def test_the_middle_crop_without_flip_leaves_an_image_as_it_is():
    images = torch.arange(2 * 3 * 5 * 5, dtype=torch.uint8).reshape(2, 3, 5, 5)
    assert torch.equal(augment(images, torch.tensor([[4, 4, 0]] * 2, dtype=torch.int16)), images)


@pytest.mark.parametrize("parameters", [[9, 0, 0], [0, -1, 0], [0, 0, 2]])
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(ValueError, match="must lie in"):
        augment(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.tensor([parameters], dtype=torch.int16))


def test_parameters_belong_to_the_row_and_not_to_its_place():
    rows = np.array([5, 900, 17])
    drawn = draw_augmentation(rows, 3, "round", 1)
    np.testing.assert_array_equal(draw_augmentation(rows[::-1], 3, "round", 1), drawn[::-1])
    np.testing.assert_array_equal(draw_augmentation(rows[1:2], 3, "round", 1), drawn[1:2])


def test_another_key_draws_other_parameters():
    rows = np.arange(50)
    assert (draw_augmentation(rows, 3, "round", 1) != draw_augmentation(rows, 3, "round", 2)).any(0).all()


def test_every_crop_and_both_flips_are_drawn_about_equally_often():
    drawn = draw_augmentation(np.arange(18_000), 0)
    assert drawn.dtype == np.int16
    for column, count in enumerate((9, 9, 2)):
        found = np.bincount(drawn[:, column], minlength=count) / len(drawn)
        assert len(found) == count
        np.testing.assert_allclose(found, 1 / count, rtol=0.1)


def test_crop_and_flip_are_drawn_independently():
    correlation = np.corrcoef(draw_augmentation(np.arange(18_000), 0).T)
    assert abs(correlation - np.eye(3)).max() < 0.03


def test_the_drawn_parameters_never_change():
    assert draw_augmentation(np.array([7, 8]), 0, "example").tolist() == [[1, 4, 1], [6, 5, 1]]
