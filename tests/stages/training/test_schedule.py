"""The schedule: a pure function that uses every image equally often and keeps its own bounds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.training.schedule import Batch, Schedule, ScheduleConfig, Visit

SMALL = ScheduleConfig(rounds=12, cohort_images=8, round_cohorts=2, batch=8, visit_steps=3, life=4, restart=0.2)


def schedule_of(config: ScheduleConfig = SMALL, *, images: int = 43, seed: int = 0) -> Schedule:
    return Schedule(config, images=images, seed=seed)


CONFIGS = st.builds(
    ScheduleConfig,
    rounds=st.integers(1, 12),
    cohort_images=st.integers(1, 12),
    round_cohorts=st.integers(1, 3),
    batch=st.integers(1, 40),
    visit_steps=st.integers(1, 4),
    life=st.integers(1, 5),
    restart=st.sampled_from([0.0, 0.15, 1.0]),
    overlap_rounds=st.sampled_from([0, 1]),
    max_lag_updates=st.just(10_000),
    last_states=st.sampled_from([0.0, 0.6, 1.0]),
)
ANY = settings(deadline=None, max_examples=40)


def same_batch(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(vars(one)[name], vars(other)[name]) for name in vars(one))


@ANY
@given(config=CONFIGS, seed=st.integers(0, 2**40), images=st.integers(36, 60))
def test_the_schedule_is_a_pure_function_whatever_is_asked_first(config, seed, images):
    forward, backward = (schedule_of(config, images=images, seed=seed) for _ in range(2))
    visits = [forward.visits(number) for number in range(config.rounds)]
    batches = [forward.batches(number) for number in range(config.rounds)]
    ages = [[forward.ages(visit) for visit in each] for each in visits]
    for number in reversed(range(config.rounds)):
        assert backward.visits(number) == visits[number]
        assert all(np.array_equal(backward.ages(v), age) for v, age in zip(visits[number], ages[number], strict=True))
        again = backward.batches(number)
        assert len(again) == forward.updates_per_round
        assert all(same_batch(one, other) for one, other in zip(batches[number], again, strict=True))


def test_another_seed_makes_another_schedule():
    one, other = schedule_of(seed=0), schedule_of(seed=1)
    assert [part.tolist() for part in one.cohorts] != [part.tolist() for part in other.cohorts]
    assert [one.visits(number) for number in range(9)] != [other.visits(number) for number in range(9)]
    assert not same_batch(one.batches(0)[0], other.batches(0)[0])


@ANY
@given(config=CONFIGS, images=st.integers(36, 60))
def test_cohorts_leave_no_image_out_and_differ_in_size_by_one_at_most(config, images):
    cohorts = schedule_of(config, images=images).cohorts
    assert sorted(np.concatenate(cohorts).tolist()) == list(range(images))
    sizes = [len(cohort) for cohort in cohorts]
    assert max(sizes) - min(sizes) <= 1
    assert abs(images / len(cohorts) - config.cohort_images) <= config.cohort_images / 2


@ANY
@given(config=CONFIGS, images=st.integers(36, 60))
def test_every_epoch_visits_every_cohort_once_and_no_round_meets_one_twice(config, images):
    schedule = schedule_of(config, images=images)
    rounds = 4 * len(schedule.cohorts)
    visits = [visit for number in range(rounds) for visit in schedule.visits(number)]
    assert [visit.number for visit in visits] == sorted(visit.number for visit in visits)
    for epoch in range(4 * config.round_cohorts):
        cohorts = [visit.cohort for visit in visits if visit.number == epoch]
        assert sorted(cohorts) == list(range(len(schedule.cohorts)))
    for number in range(rounds):
        cohorts = [visit.cohort for visit in schedule.visits(number)]
        assert len(set(cohorts)) == len(cohorts) == config.round_cohorts


def test_the_order_differs_from_epoch_to_epoch():
    schedule = schedule_of(replace(SMALL, round_cohorts=5))  # all five, so that a round is an epoch
    orders = {tuple(visit.cohort for visit in schedule.visits(number)) for number in range(8)}
    assert len(orders) > 5


@ANY
@given(config=CONFIGS)
def test_a_trajectory_starts_from_noise_after_its_life_and_at_its_first_visit(config):
    schedule = schedule_of(config)
    before = np.zeros(len(schedule.cohorts[0]), np.int64)
    for number in range(3 * config.life):
        ages = schedule.ages(Visit(cohort=0, number=number))
        if number == 0 or config.restart == 1 or config.life == 1:
            assert (ages == 0).all()
        elif config.restart == 0:
            assert (ages == number % config.life).all()
        assert ((ages == 0) | (ages == before + 1)).all()
        assert ages.max() < config.life
        before = ages


def test_restarts_by_chance_come_as_often_as_they_should():
    schedule = schedule_of(replace(SMALL, restart=0.3, life=1000), images=400)
    ages = np.concatenate([schedule.ages(Visit(cohort=3, number=number)) for number in range(1, 200)])
    assert abs((ages == 0).mean() - 0.3) < 0.03


@pytest.mark.parametrize(("overlap", "versions"), [(0, [0, 1, 2, 3, 4]), (1, [0, 0, 1, 2, 3])])
def test_overlap_attacks_the_version_of_the_round_before(overlap, versions):
    schedule = schedule_of(replace(SMALL, overlap_rounds=overlap))
    assert [schedule.version(number) for number in range(5)] == versions


@ANY
@given(config=CONFIGS)
def test_the_lag_of_every_round_is_that_of_its_last_update_and_within_the_bound(config):
    schedule = schedule_of(config)
    for number in range(config.rounds):
        attacked = schedule.version(number) * schedule.updates_per_round
        last = (number + 1) * schedule.updates_per_round - 1
        assert schedule.lag(number) == last - attacked <= schedule.lag_bound
    assert config.rounds == 1 or schedule.lag(config.rounds - 1) == schedule.lag_bound


def test_a_recipe_that_cannot_hold_its_lag_is_refused_before_it_runs():
    bound = schedule_of().lag_bound
    assert bound == 3
    schedule_of(replace(SMALL, max_lag_updates=bound))
    with pytest.raises(ValueError, match=rf"up to {bound} updates after .*max_lag_updates = {bound - 1}; lower"):
        schedule_of(replace(SMALL, max_lag_updates=bound - 1))


@ANY
@given(config=CONFIGS)
def test_a_round_trains_on_every_image_of_its_cohorts_once_in_even_batches(config):
    schedule = schedule_of(config)
    for number in range(config.rounds):
        batches = schedule.batches(number)
        images = sum(len(schedule.cohorts[visit.cohort]) for visit in schedule.visits(number))
        assert sorted(np.concatenate([batch.places for batch in batches]).tolist()) == list(range(images))
        sizes = [len(batch.places) for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        for batch in batches:
            assert 1 <= batch.states.min() <= batch.states.max() <= config.visit_steps


def test_batches_are_drawn_across_the_cohorts_of_a_round():
    schedule = schedule_of(replace(SMALL, cohort_images=100, batch=50), images=400)
    for batch in schedule.batches(0):
        assert 10 < (batch.places < 100).sum() < 40


def test_training_states_have_their_shares():
    config = replace(SMALL, batch=400, cohort_images=400, round_cohorts=1, last_states=0.6, clean_states=0.1)
    (batch,) = schedule_of(config, images=400).batches(0)
    assert abs((batch.states == 0).mean() - 0.1) < 0.04
    assert abs((batch.states == 3).mean() - (0.6 + 0.3 / 3)) < 0.05
    assert abs((batch.states == 1).mean() - 0.1) < 0.04


def test_a_gentle_start_trains_on_clean_images_and_ever_fewer_of_them():
    config = replace(SMALL, batch=400, cohort_images=400, round_cohorts=1, clean_states=0.1, clean_rounds=4, rounds=16)
    gentle, plain = schedule_of(config, images=400), schedule_of(replace(config, clean_rounds=0), images=400)
    shares = [(gentle.batches(number)[0].states == 0).mean() for number in range(6)]
    assert np.abs(np.array(shares) - [1, 0.75, 0.5, 0.25, 0.1, 0.1]).max() < 0.06
    for number in (4, 5):  # as if it had not been
        assert gentle.batches(number)[0].states.tolist() == plain.batches(number)[0].states.tolist()


def test_a_gentle_start_lasts_a_quarter_of_a_short_training():
    config = replace(SMALL, batch=400, cohort_images=400, round_cohorts=1, clean_rounds=200, rounds=8)
    shares = [(schedule_of(config, images=400).batches(number)[0].states == 0).mean() for number in range(3)]
    assert np.abs(np.array(shares) - [1, 0.5, 0]).max() < 0.06


def test_slices_of_train_workers_are_the_batch():
    batch = schedule_of().batches(3)[0]
    parts = [batch.part(rank, 2) for rank in range(2)]
    for name, whole in vars(batch).items():
        assert sorted(np.concatenate([vars(part)[name] for part in parts]).tolist()) == sorted(whole.tolist())
    assert abs(len(parts[0].places) - len(parts[1].places)) <= 1


def test_counts_for_the_whole_loop_add_up():
    schedule = schedule_of(images=40)
    assert (schedule.examples, schedule.updates_per_round, schedule.updates) == (16, 2, 24)
    assert schedule.attack_steps == 12 * 16 * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": -1}, r"schedule\.rounds is -1"),
        ({"cohort_images": 0}, r"schedule\.cohort_images is 0; it must be at least 1"),
        ({"life": 0}, r"schedule\.life is 0"),
        ({"restart": 1.5}, r"schedule\.restart is 1\.5; it is a share in \[0, 1\]"),
        ({"clean_rounds": -1}, r"schedule\.clean_rounds is -1; it must be at least 0"),
        ({"last_states": 0.7, "clean_states": 0.4}, "add up to more than 1"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_more_cohorts_a_round_than_there_are_is_refused():
    with pytest.raises(ValueError, match="but 15 training images make 2 cohorts of about 8: choose at most that many"):
        schedule_of(replace(SMALL, round_cohorts=3), images=15)
