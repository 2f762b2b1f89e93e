"""What is proposed is a function of the space and the seed, and asking for more keeps what was there."""

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.search.space import Choice, Range, gridded, sampled


def first(count: int, settings) -> list:
    return list(islice(settings, count))


SPACE = {"a": Choice((1, 2, 3)), "b": Choice(("x", "y")), "rate": Range(1e-4, 1e-2, log=True)}


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 50), st.integers(0, 30), st.integers(0, 30))
def test_asking_for_more_keeps_what_was_asked_for_before(seed, count, more):
    assert first(count + more, sampled(SPACE, seed=seed))[:count] == first(count, sampled(SPACE, seed=seed))
    points = {"a": SPACE["a"], "b": SPACE["b"]}
    assert first(count + more, gridded(points, seed=seed))[:count] == first(count, gridded(points, seed=seed))


def test_another_seed_proposes_others():
    assert first(5, sampled(SPACE, seed=0)) != first(5, sampled(SPACE, seed=1))


def test_nothing_is_proposed_twice_and_a_small_space_ends():
    small = {"a": Choice((1, 2)), "b": Choice(("x", "y", "z"))}
    found = first(100, sampled(small, seed=0))
    assert len(found) == len({tuple(each.values()) for each in found}) == 6
    assert sorted(map(str, first(100, gridded(small, seed=3)))) == sorted(map(str, found))


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 1, exclude_max=True))
def test_a_range_holds_what_it_draws_to_three_digits(share):
    assert 1e-4 <= (rate := Range(1e-4, 1e-2, log=True).at(share)) <= 1e-2
    assert rate == float(f"{rate:.3g}")
    assert Range(10, 40, whole=True).at(share) in range(10, 41)
    assert Range(1, 64, log=True, whole=True).at(share) in range(1, 65)


def test_both_ends_of_a_whole_range_are_drawn():
    found = {each["n"] for each in first(3, sampled({"n": Range(1, 3, whole=True)}, seed=0))}
    assert found == {1, 2, 3}


def test_a_grid_of_a_range_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="rate is a range, of which a grid has no points: give values"):
        first(3, gridded(SPACE, seed=0))
