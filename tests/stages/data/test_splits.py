import numpy as np
import pytest

from stages.data.splits import Split, divide, repeated


def split_of(rows):
    rows = np.asarray(rows, np.int64)
    return Split(np.zeros((len(rows), 1, 2, 2), np.uint8), rows % 10, rows)


def test_positions_are_where_each_row_stands_in_any_order():
    split = split_of([3, 7, 20])
    assert split.positions(np.array([20, 3, 3])).tolist() == [2, 0, 0]


@pytest.mark.parametrize("row", [-1, 4, 21])
def test_a_row_that_is_absent_is_named(row):
    with pytest.raises(ValueError, match=f"row {row} is not among the 3 rows"):
        split_of([3, 7, 20]).positions(np.array([7, row]))


def test_rows_that_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match="must ascend"):
        split_of([3, 3, 4])


def test_taking_keeps_images_labels_and_rows_together_and_in_order():
    rows = np.arange(5, 15)
    split = Split(rows.astype(np.uint8).reshape(10, 1, 1, 1), rows % 10, rows)
    taken = split.take(np.array([9, 0, 4]))
    assert taken.rows.tolist() == taken.images.ravel().tolist() == [5, 9, 14]
    assert taken.labels.tolist() == [5, 9, 4]


def test_divided_parts_are_disjoint_and_of_the_sizes_asked_for():
    first, last = divide(split_of(range(100)), 30, 70, "key")
    assert (len(first), len(last)) == (30, 70)
    assert sorted([*first.rows, *last.rows]) == list(range(100))


def test_a_larger_part_contains_the_smaller_and_does_not_depend_on_the_other():
    split = split_of(range(100))
    small, large = divide(split, 10, 20, "key")[1], divide(split, 50, 40, "key")[1]
    assert set(small.rows) < set(large.rows)
    assert divide(split, 10, 20, "key")[0].fingerprint == divide(split, 10, 80, "key")[0].fingerprint


def test_another_key_divides_otherwise():
    split = split_of(range(100))
    assert divide(split, 50, 50, "key")[0].fingerprint != divide(split, 50, 50, "other")[0].fingerprint


def test_parts_that_would_overlap_are_refused():
    with pytest.raises(ValueError, match="cannot take 60 and 50 images out of 100"):
        divide(split_of(range(100)), 60, 50, "key")


@pytest.mark.parametrize(("first", "last"), [(150, 350), (350, 150), (40, 300), (500, 0)])
def test_the_larger_part_lies_in_the_memory_of_what_was_divided(first, last):
    rows = np.arange(500)
    memory = np.repeat(rows % 251, 4).astype(np.uint8).reshape(500, 1, 2, 2)
    parts = divide(Split(memory, rows % 10, rows), first, last, "key")
    for part in parts:
        assert np.array_equal(part.images, np.broadcast_to((part.rows % 251)[:, None, None, None], part.images.shape))
        assert np.array_equal(part.labels, part.rows % 10)
    assert [np.shares_memory(part.images, memory) for part in parts] == [first > last, first <= last]


@pytest.mark.parametrize("name", ["images", "labels", "rows"])
def test_the_fingerprint_sees_every_part(name):
    arrays = {
        "images": np.zeros((2, 1, 1, 1), np.uint8),
        "labels": np.zeros(2, np.int64),
        "rows": np.array([1, 5]),
    }
    before = Split(**arrays).fingerprint
    arrays[name] = arrays[name].copy()
    arrays[name][1] += 1
    assert Split(**arrays).fingerprint != before


def test_images_that_stand_elsewhere_too_are_counted_by_their_pixels():
    rows = np.arange(6)
    one, other = (
        Split(pixels.astype(np.uint8).reshape(6, 1, 1, 1), rows % 2, rows) for pixels in (rows, rows[::-1] + 4)
    )
    assert (repeated(one, other), repeated(one), repeated(one, other, one)) == (2, 0, 6)
