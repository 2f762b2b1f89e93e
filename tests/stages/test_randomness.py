"""Random numbers by key: the published generator, and independence of who draws and when."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import randomness
from stages.randomness import GOLDEN, integers, key_seed, normal, permutation, splitmix64, start_levels, uniform

DRAWS = {
    "bits": lambda count, *key: randomness.bits(count, *key),
    "uniform": uniform,
    "integers": lambda count, *key: integers(-5, 12, count, *key),
    "normal": normal,
    "permutation": permutation,
}


def test_splitmix64_gives_the_published_sequence():
    # the reference implementation (Vigna, prng.di.unimi.it/splitmix64.c) from the state 1234567
    states = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * GOLDEN
    assert splitmix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@settings(deadline=None, max_examples=50)
@given(state=st.integers(0, 2**64 - 1))
def test_splitmix64_is_arithmetic_modulo_2_to_the_64(state):
    mask, mixed = 2**64 - 1, (state + 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & mask
    assert splitmix64(np.array([state], np.uint64)).tolist() == [mixed ^ (mixed >> 31)]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_what_is_drawn_depends_on_the_key_alone_and_not_on_the_order(draw):
    keys = [(0, "start", 3), (1, "start", 3), (0, "restart", 3), ("0", "start", 3), (0, "start", 33)]
    forward = [draw(40, *key) for key in keys]
    backward = [draw(40, *key) for key in reversed(keys)][::-1]
    assert all(np.array_equal(one, other) for one, other in zip(forward, backward, strict=True))
    assert len({draws.tobytes() for draws in forward}) == len(keys)


@pytest.mark.parametrize("name", ["bits", "uniform", "integers"])
def test_fewer_draws_are_the_first_of_more(name):
    assert np.array_equal(DRAWS[name](7, "key"), DRAWS[name](100, "key")[:7])


def test_nothing_touches_the_global_generators():
    before = np.random.get_state()[1].copy()  # pyright: ignore
    for draw in DRAWS.values():
        draw(10, "key")
    assert np.array_equal(before, np.random.get_state()[1])  # pyright: ignore


def test_keys_are_told_apart_whatever_is_in_them():
    keys = [(1, 2), (12,), ("1", 2), ("12",), ("1,2",), (1, "2"), ()]
    assert len({key_seed(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize("count", [1, 2, 17, 1000])
def test_a_permutation_holds_every_number_once(count):
    order = permutation(count, "order", count)
    assert sorted(order.tolist()) == list(range(count))


def test_permutations_put_every_number_in_every_place_equally_often():
    orders = np.stack([permutation(8, "order", turn) for turn in range(4000)])
    counts = np.stack([np.bincount(column, minlength=8) for column in orders.T])
    chi2 = ((counts - 500) ** 2 / 500).sum()
    assert chi2 < 49 + 5 * (2 * 49) ** 0.5  # 49 degrees of freedom, five standard deviations


def test_uniform_numbers_fill_the_half_open_interval_evenly():
    values = uniform(100_000, "uniform")
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, 50, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 49 + 5 * (2 * 49) ** 0.5


@pytest.mark.parametrize("count", [1, 4, 5])
def test_as_many_normal_numbers_come_as_were_asked_for(count):
    assert normal(count, "normal").shape == (count,)


def test_normal_numbers_have_the_moments_of_the_normal_distribution():
    values = normal(100_000, "normal")
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    assert abs((values**4).mean() - 3) < 0.15
    assert abs(np.corrcoef(values[:50_000], values[50_000:])[0, 1]) < 0.02


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**64 - 1), bound=st.integers(0, 16320), first=st.integers(0, 2**40))
def test_start_levels_stay_within_their_bound(seed, bound, first):
    levels = start_levels(seed, np.arange(first, first + 3), 50, bound)
    assert levels.dtype == np.int16
    assert levels.shape == (3, 50)
    assert int(np.abs(levels.astype(np.int64)).max()) <= bound


def test_start_levels_reach_every_level_equally_often():
    levels = start_levels(9, np.arange(1000), 210, 10)
    counts = np.bincount(levels.ravel().astype(np.int64) + 10, minlength=21)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 20 + 5 * 40**0.5
    for axis in (0, 1):  # neither neighbouring rows nor neighbouring pixels are related
        one, other = np.take(levels, range(100), axis), np.take(levels, range(1, 101), axis)
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


def test_start_levels_are_those_of_the_documented_hash():
    seed, row, pixel, bound = 2**64 - 3, 7, 4, 1020
    stream = int(splitmix64(np.array([(seed + row) % 2**64], np.uint64))[0])
    word = int(splitmix64(np.array([(stream + pixel) % 2**64], np.uint64))[0])
    assert start_levels(seed, np.array([row]), 9, bound)[0, pixel] == word % (2 * bound + 1) - bound
