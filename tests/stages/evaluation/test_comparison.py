import doctest
import itertools

import numpy as np
import pytest
from unchecked import unchecked_types

from stages.evaluation import comparison
from stages.evaluation.comparison import Comparison


def test_the_interval_is_newcombes():
    """Table II of Newcombe 1998, method 10."""
    found = Comparison(both=36, first_only=12, second_only=2, neither=0)
    assert found.difference == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_pairing_narrows_the_interval():
    paired = Comparison(both=45, first_only=5, second_only=0, neither=50)
    unpaired = Comparison(both=23, first_only=27, second_only=22, neither=28)
    assert paired.difference == unpaired.difference == 0.05
    assert paired.interval[1] - paired.interval[0] < 0.6 * (unpaired.interval[1] - unpaired.interval[0])


def test_mcnemars_test_counts_only_the_images_that_differ():
    assert Comparison(both=3, first_only=10, second_only=0, neither=7).p_value == pytest.approx(2 / 2**10)
    assert Comparison(both=3, first_only=4, second_only=4, neither=7).p_value == 1
    assert Comparison(both=3, first_only=0, second_only=0, neither=0).p_value == 1


def test_swapping_the_two_turns_the_difference_and_its_interval():
    for counts in itertools.product((0, 1, 7), repeat=4):
        if sum(counts) == 0:
            continue
        both, one, other, neither = counts
        found = Comparison(both=both, first_only=one, second_only=other, neither=neither)
        turned = Comparison(both=both, first_only=other, second_only=one, neither=neither)
        low, high = found.interval
        assert -1 <= low <= found.difference <= high <= 1
        assert turned.interval == pytest.approx((-high, -low))


def test_masks_must_be_of_the_same_images():
    with unchecked_types(), pytest.raises(ValueError, match="3 and 2 images"):
        Comparison.of(np.ones(3, bool), np.ones(2, bool))
    with pytest.raises(ValueError, match="no images"):
        Comparison.of(np.ones(0, bool), np.ones(0, bool))


def test_the_example_gives_what_it_says():
    assert doctest.testmod(comparison).failed == 0
