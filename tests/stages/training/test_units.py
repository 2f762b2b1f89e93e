"""Units: what a change of the recipe renames, and what it leaves, so that shards are shared."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import DATA, SCHEDULE, TRAIN, loop_config, setup_of

from stages.data.augmentation import draw_augmentation
from stages.nets.unet import UNetConfig
from stages.rap.objective import ObjectiveConfig
from stages.training.schedule import Schedule, ScheduleConfig
from stages.training.units import Units
from stages.trajectories.generate import Unit

WEIGHTS = [f"weights of version {number}" for number in range(6)]


def names(number: int, **changes: object) -> list[str]:
    setup = setup_of(Path("root"), loop_config(**changes))  # pyright: ignore[reportArgumentType]
    return [unit.fingerprint for unit in setup.units.of(number, WEIGHTS)]


@pytest.mark.parametrize(
    "train",
    [
        replace(TRAIN, learning_rate=5e-3),
        replace(TRAIN, ema=0.99),
        replace(TRAIN, optimizer="sgd"),
        replace(TRAIN, objective=ObjectiveConfig(kl=1.0)),
    ],
    ids=["learning rate", "average", "optimizer", "objective"],
)
def test_a_changed_training_setting_keeps_the_first_rounds_shards(train):
    # with overlap, rounds 0 and 1 both attack version 0
    assert names(0, train=train) == names(0)
    assert names(1, train=train) == names(1)


def test_passes_replay_judge_and_number_of_rounds_keep_them_too():
    schedule = replace(SCHEDULE, passes=3, replay=0.5, rounds=99, last_states=0.1, max_lag_updates=99)
    assert names(1, schedule=schedule) == names(1)
    assert names(1, checkpoint_rounds=7) == names(1)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"adapter": UNetConfig(width=16, multipliers=(1,))},
        {"straight_through": False},
        {"train": replace(TRAIN, what="both")},
        {"train": replace(TRAIN, what="classifier")},
        {"augment": True},
        {"attack": replace(loop_config().attack, step=100)},
        {"schedule": replace(SCHEDULE, segment_steps=1)},
        {"schedule": replace(SCHEDULE, unit_examples=8)},
    ],
    ids=str,
)
def test_a_change_of_what_is_attacked_or_how_renames_every_shard(change):
    assert not set(names(0, **change)) & set(names(0))


def units_of(number: int, weights: list[str]) -> list[Unit]:
    return setup_of(Path("root")).units.of(number, weights)


def test_a_shard_is_named_by_the_weights_it_attacks_and_by_its_parents():
    before = units_of(3, WEIGHTS)
    assert {unit.weights for unit in before} == {"weights of version 2"}
    attacked = units_of(3, [*WEIGHTS[:2], "other", *WEIGHTS[3:]])
    assert [unit.index.tolist() for unit in attacked] == [unit.index.tolist() for unit in before]
    assert not {unit.fingerprint for unit in attacked} & {unit.fingerprint for unit in before}
    # some parents of round 3 attacked version 0: other first weights rename them, and so the round
    first = units_of(3, ["other", *WEIGHTS[1:]])
    assert first[0].parents != before[0].parents
    assert first[0].fingerprint != before[0].fingerprint


def test_fewer_examples_a_round_share_the_units_that_both_have():
    fewer = names(0, schedule=replace(SCHEDULE, examples=16))
    assert fewer == names(0)[:1]


def test_parents_really_hold_the_image_in_that_place():
    setup = setup_of(Path("root"))
    every = {unit.fingerprint: unit for number in range(6) for unit in setup.units.of(number, WEIGHTS)}
    going = 0
    for unit in every.values():
        assert np.array_equal(unit.index, DATA.train.rows[setup.schedule.round(unit.round).positions][_slots(unit)])
        for row, made, parent, place in zip(unit.index, unit.made, unit.parent, unit.parent_position, strict=True):
            if parent < 0:
                assert (made, place) == (0, -1)
                continue
            before, going = every[unit.parents[parent]], going + 1
            assert before.round < unit.round
            assert before.index[place] == row
            assert before.made[place] + before.steps == made
        assert set(unit.parent[unit.parent >= 0]) == set(range(len(unit.parents)))
    assert going > 50


def _slots(unit):
    return slice(16 * unit.number, 16 * unit.number + 16)


def test_augmentation_changes_only_at_a_restart():
    setup = setup_of(Path("root"), loop_config(augment=True))
    every = {unit.fingerprint: unit for number in range(6) for unit in setup.units.of(number, WEIGHTS)}
    for unit in every.values():
        assert unit.augmentation is not None
        for slot, parent in enumerate(unit.parent):
            if parent < 0:
                drawn = draw_augmentation(unit.index[slot : slot + 1], 0, unit.round)[0]
            else:
                before = every[unit.parents[parent]].augmentation
                assert before is not None
                drawn = before[unit.parent_position[slot]]
            assert np.array_equal(unit.augmentation[slot], drawn)


def test_starts_are_drawn_anew_each_round():
    units = setup_of(Path("root")).units  # pyright: ignore[reportArgumentType]
    assert len({unit.start_seed for number in range(6) for unit in units.of(number, WEIGHTS)}) == 6


def test_a_long_chain_of_parents_is_no_deep_recursion():
    # one round an epoch: every unit goes on with the round before, back to the first
    config = ScheduleConfig(rounds=500, examples=16, unit_examples=16, batch=16, segment_steps=1)
    split = DATA.train.take(np.arange(16))
    schedule = Schedule(config, images=16, length=4, seed=0)
    units = Units(schedule, loop_config().attack, split, model="model")
    assert units.of(499, ["weights"] * 500)[0].parents
