import doctest
from math import comb

import numpy as np
import pytest

from stages.evaluation.checks import counts
from stages.evaluation.checks.counts import alone, at_least, exceeds, judge_zero, outnumbers


def test_the_examples_give_what_they_say():
    assert doctest.testmod(counts).failed == 0


@pytest.mark.parametrize(("hits", "trials", "share"), [(0, 5, 0.1), (3, 5, 0.5), (5, 5, 0.01), (7, 360, 0.01)])
def test_tails_are_those_of_the_binomial_distribution(hits, trials, share):
    exact = sum(comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(hits, trials + 1))
    assert at_least(hits, trials, share) == pytest.approx(exact)


def test_none_passes_few_warn_and_more_than_the_tolerated_share_fail():
    assert [judge_zero(hits, 64) for hits in (0, 1, 2, 3)] == ["pass", "warn", "warn", "fail"]
    assert [judge_zero(hits, 1000) for hits in (1, 15, 16)] == ["warn", "warn", "fail"]


def test_more_than_nothing_is_not_beyond_chance_and_neither_is_equality():
    assert not outnumbers(0, 0)
    assert not outnumbers(30, 30)
    assert outnumbers(40, 20)
    assert not exceeds(0, 10)


def test_alone_counts_what_the_first_broke_and_the_second_left():
    first, second = np.array([True, False, False, True]), np.array([True, True, False, False])
    assert alone(first, second) == 1
    assert alone(second, first) == 1
