"""The schedule: a pure function that uses every image equally often and keeps its own bounds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.training.schedule import Batch, RoundPlan, Schedule, ScheduleConfig

SMALL = ScheduleConfig(rounds=12, examples=16, unit_examples=8, batch=8, segment_steps=3, replay_rounds=4)


def schedule_of(config: ScheduleConfig = SMALL, *, images: int = 40, length: int = 10, seed: int = 0) -> Schedule:
    return Schedule(config, images=images, length=length, seed=seed)


CONFIGS = st.builds(
    ScheduleConfig,
    rounds=st.integers(1, 8),
    examples=st.integers(1, 20),
    unit_examples=st.just(1),
    passes=st.integers(1, 4),
    batch=st.integers(2, 12),
    replay=st.sampled_from([0.0, 0.25, 0.5]),
    replay_rounds=st.integers(1, 5),
    warm_start=st.booleans(),
    segment_steps=st.integers(1, 6),
    restart=st.sampled_from([0.0, 0.15, 1.0]),
    overlap_rounds=st.sampled_from([0, 1]),
    max_lag_updates=st.just(10_000),
    last_states=st.sampled_from([0.0, 0.6, 1.0]),
)
ANY = settings(deadline=None, max_examples=25)


def same_plan(one: RoundPlan, other: RoundPlan) -> bool:
    return all(np.array_equal(vars(one)[name], vars(other)[name]) for name in vars(one))


def same_batch(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(vars(one)[name], vars(other)[name]) for name in vars(one))


@ANY
@given(config=CONFIGS, seed=st.integers(0, 2**40))
def test_the_schedule_is_a_pure_function_whatever_is_asked_first(config, seed):
    forward, backward = (schedule_of(config, seed=seed) for _ in range(2))
    plans = [forward.round(number) for number in range(config.rounds)]
    batches = [forward.batches(number) for number in range(config.rounds)]
    for number in reversed(range(config.rounds)):
        again = backward.batches(number)
        assert len(again) == forward.updates_per_round
        assert all(same_batch(one, other) for one, other in zip(batches[number], again, strict=True))
        assert same_plan(plans[number], backward.round(number))


def test_another_seed_makes_another_schedule():
    assert not same_plan(schedule_of(seed=0).round(0), schedule_of(seed=1).round(0))
    assert not same_batch(schedule_of(seed=0).batches(0)[0], schedule_of(seed=1).batches(0)[0])


@ANY
@given(config=CONFIGS, images=st.integers(20, 60))
def test_no_image_is_attacked_twice_in_an_epoch(config, images):
    schedule, epoch = schedule_of(config, images=images), images // config.examples
    for first in range(0, config.rounds, epoch):
        numbers = range(first, min(first + epoch, config.rounds))
        positions = np.concatenate([schedule.round(number).positions for number in numbers])
        assert len(set(positions.tolist())) == len(positions) == config.examples * len(numbers)
        assert positions.min() >= 0
        assert positions.max() < images


def test_every_image_is_attacked_equally_often():
    schedule = schedule_of(images=48)
    counts = np.bincount(np.concatenate([schedule.round(number).positions for number in range(12)]), minlength=48)
    assert (counts == 4).all()


def test_what_an_epoch_leaves_out_differs_from_epoch_to_epoch():
    schedule = schedule_of(images=40)
    left_out = [
        set(range(40)) - {*schedule.round(2 * epoch).positions, *schedule.round(2 * epoch + 1).positions}
        for epoch in range(6)
    ]
    assert all(len(rest) == 8 for rest in left_out)
    assert len(set.intersection(*left_out)) == 0


@ANY
@given(config=CONFIGS, length=st.integers(6, 12))
def test_parents_are_earlier_rounds_that_hold_the_same_image_and_leave_room_for_k_steps(config, length):
    schedule, made = schedule_of(config, length=length), {}
    for number in range(config.rounds):
        plan = schedule.round(number)
        for slot, position in enumerate(plan.positions):
            before, place = int(plan.parent_round[slot]), int(plan.parent_slot[slot])
            if before < 0:
                assert plan.made[slot] == 0
                assert plan.origin[slot] == number
                assert place == -1
            else:
                parent = schedule.round(before)
                assert before < number
                assert config.warm_start
                assert parent.positions[place] == position
                assert plan.made[slot] == made[before, place] == parent.made[place] + schedule.steps
                assert plan.origin[slot] == parent.origin[place]
            assert plan.made[slot] + schedule.steps <= length
            made[number, slot] = plan.made[slot] + schedule.steps


def test_warm_starts_happen_and_chance_restarts_some():
    always = schedule_of(replace(SMALL, restart=0.0), images=32, length=30)
    assert (always.round(10).parent_round >= 0).all()
    never = schedule_of(replace(SMALL, restart=1.0), images=32, length=30)
    assert all((never.round(number).parent_round < 0).all() for number in range(12))
    sometimes = schedule_of(replace(SMALL, restart=0.5, rounds=60), images=32, length=300)
    warm = np.concatenate([sometimes.round(number).parent_round >= 0 for number in range(2, 60)])
    assert abs(warm.mean() - 0.5) < 0.08


def test_without_warm_start_every_segment_has_all_t_steps():
    schedule = schedule_of(replace(SMALL, warm_start=False), length=7)
    assert schedule.steps == 7
    assert all((schedule.round(number).made == 0).all() for number in range(12))


@pytest.mark.parametrize(("overlap", "versions"), [(0, [0, 1, 2, 3, 4]), (1, [0, 0, 1, 2, 3])])
def test_overlap_attacks_the_version_of_the_round_before(overlap, versions):
    schedule = schedule_of(replace(SMALL, overlap_rounds=overlap))
    assert [schedule.version(number) for number in range(5)] == versions


@ANY
@given(config=CONFIGS)
def test_the_lag_of_every_round_is_within_the_bound_that_is_checked_before_a_run(config):
    schedule = schedule_of(config)
    assert max(schedule.lag(number) for number in range(config.rounds)) <= schedule.lag_bound


def test_the_lag_is_that_of_the_first_use():
    schedule = schedule_of(replace(SMALL, overlap_rounds=1))
    for number in (0, 1, 5):
        first: dict[int, int] = {}
        for update, batch in enumerate(schedule.batches(number)):
            for slot in batch.slots[batch.fresh]:
                first.setdefault(int(slot), update)
        assert len(first) == 16
        behind = schedule.updates_per_round * (number - schedule.version(number))
        assert schedule.lag(number) == max(first.values()) + behind


def test_a_recipe_that_cannot_hold_its_lag_is_refused_before_it_runs():
    bound = schedule_of().lag_bound
    schedule_of(replace(SMALL, max_lag_updates=bound))
    with pytest.raises(ValueError, match=rf"up to {bound} updates after .*max_lag_updates = {bound - 1}; lower"):
        schedule_of(replace(SMALL, max_lag_updates=bound - 1))


@ANY
@given(config=CONFIGS)
def test_every_batch_holds_fresh_segments_and_replay_from_the_window_only(config):
    schedule = schedule_of(config)
    for number in range(config.rounds):
        window = schedule.window(number)
        assert window.stop == number + 1
        assert len(window) == min(number, config.replay_rounds if config.replay else 0) + 1
        for batch in schedule.batches(number):
            assert len(batch.slots) == len(batch.rounds) == len(batch.states) == config.batch
            assert batch.fresh.sum() == schedule.fresh_per_batch
            assert (batch.rounds[batch.fresh] == number).all()
            assert set(batch.rounds.tolist()) <= set(window)
            assert 0 <= batch.slots.min() <= batch.slots.max() < config.examples
            assert 1 <= batch.states.min() <= batch.states.max() <= schedule.steps


@ANY
@given(config=CONFIGS)
def test_ages_are_counted_from_the_attacked_weights_and_end_with_the_window(config):
    schedule = schedule_of(config)
    number = config.rounds - 1
    ages = schedule.ages(number)
    each = schedule.updates_per_round
    assert len(ages) == each * config.batch
    assert ages.min() >= 0
    assert ages.max() <= (len(schedule.window(number)) - 1 + config.overlap_rounds) * each + each - 1


@ANY
@given(config=CONFIGS)
def test_every_fresh_segment_is_used_passes_times_or_once_more_to_fill_the_last_batch(config):
    schedule = schedule_of(config)
    fresh = np.concatenate([batch.slots[batch.fresh] for batch in schedule.batches(config.rounds - 1)])
    counts = np.bincount(fresh, minlength=config.examples)
    assert counts.min() >= config.passes
    surplus = schedule.updates_per_round * schedule.fresh_per_batch - config.examples * config.passes
    assert 0 <= surplus < schedule.fresh_per_batch
    if surplus == 0:
        assert (counts == config.passes).all()


def test_training_states_have_their_shares():
    config = replace(SMALL, batch=400, examples=400, unit_examples=400, last_states=0.6, clean_states=0.1)
    batches = schedule_of(config, images=400).batches(0)
    states = np.concatenate([batch.states for batch in batches])
    assert abs((states == 0).mean() - 0.1) < 0.04
    assert abs((states == 3).mean() - (0.6 + 0.3 / 3)) < 0.05
    assert abs((states == 1).mean() - 0.1) < 0.04


def test_slices_of_train_workers_are_the_batch_and_share_what_is_fresh():
    batch = schedule_of(replace(SMALL, replay=0.5)).batches(3)[0]
    parts = [batch.part(rank, 2) for rank in range(2)]
    for name in vars(batch):
        joined = np.stack([vars(part)[name] for part in parts], 1).reshape(-1)
        assert np.array_equal(joined, vars(batch)[name])
    assert [int(part.fresh.sum()) for part in parts] == [2, 2]


def test_counts_for_the_whole_loop_add_up():
    schedule = schedule_of(replace(SMALL, passes=2, replay=0.25))
    assert (schedule.fresh_per_batch, schedule.updates_per_round, schedule.updates) == (6, 6, 72)
    assert (schedule.units_per_round, schedule.attack_steps) == (2, 12 * 16 * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": -1}, r"schedule\.rounds is -1"),
        ({"examples": 0}, r"schedule\.examples is 0; it must be at least 1"),
        ({"passes": 0}, r"schedule\.passes is 0"),
        ({"unit_examples": 5}, r"unit_examples 5 does not divide schedule\.examples 16"),
        ({"replay": 1.5}, r"schedule\.replay is 1\.5; it is a share in \[0, 1\]"),
        ({"replay": 1.0}, "leaves no fresh segment in a batch of 8"),
        ({"replay_rounds": 0}, "replay_rounds is 0 but"),
        ({"last_states": 0.7, "clean_states": 0.4}, "add up to more than 1"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_more_examples_than_images_and_more_steps_than_t_are_refused():
    with pytest.raises(ValueError, match="the training split has 15 images"):
        schedule_of(images=15)
    with pytest.raises(ValueError, match=r"segment_steps is 3, more than attack\.steps \(T = 2\)"):
        schedule_of(length=2)


def test_replayed_segments_differ_from_batch_to_batch():
    batches = schedule_of(replace(SMALL, replay=0.5)).batches(8)
    chosen = {(batch.rounds[~batch.fresh].tobytes(), batch.slots[~batch.fresh].tobytes()) for batch in batches}
    assert len(chosen) == len(batches) == 8
