"""Units: what a change of the recipe renames, and what it leaves, so that shards are shared."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import DATA, SCHEDULE, TRAIN, loop_config, setup_of

from stages.nets.unet import UNetConfig
from stages.rap.objective import ObjectiveConfig
from stages.training.units import after
from stages.trajectories.generate import Unit

ROUNDS = 12


def all_units(weights: str = "version", **changes: object) -> list[list[Unit]]:
    """The units of some rounds, with made-up fingerprints of the weights."""
    setup, previous, units = setup_of("root", loop_config(**changes)), {}, []  # pyright: ignore[reportArgumentType]
    for number in range(ROUNDS):
        units.append(setup.units.of(number, f"{weights} {setup.schedule.version(number)}", previous))
        previous = after(previous, units[-1])
    return units


def names(number: int, **changes: object) -> list[str]:
    return [unit.fingerprint for unit in all_units(**changes)[number]]  # pyright: ignore[reportArgumentType]


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
def test_a_changed_training_setting_keeps_the_shards_that_attack_the_first_weights(train):
    assert names(0, train=train) == names(0)
    assert names(1, train=train) == names(1)


def test_batch_states_judge_and_number_of_rounds_keep_them_too():
    schedule = replace(SCHEDULE, batch=8, rounds=99, last_states=0.1, max_lag_updates=99)
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
        {"schedule": replace(SCHEDULE, visit_steps=1)},
        {"schedule": replace(SCHEDULE, cohort_images=8)},
    ],
    ids=str,
)
def test_a_change_of_what_is_attacked_or_how_renames_every_shard(change):
    assert not set(names(0, **change)) & set(names(0))


def test_a_shard_is_named_by_the_weights_it_attacks_and_by_its_parent():
    units = [unit for each in all_units() for unit in each]
    others = [unit for each in all_units("other version") for unit in each]
    for one, other in zip(units, others, strict=True):
        assert np.array_equal(one.index, other.index)
        assert one.fingerprint != other.fingerprint
        assert (one.parent != other.parent) == bool(one.parent)
    last = next(unit for unit in reversed(units) if unit.parent)
    assert replace(last, parent="another").fingerprint != last.fingerprint


def test_every_unit_goes_on_with_the_last_visit_of_its_cohort():
    every, going, last = [unit for each in all_units() for unit in each], 0, {}
    for unit in every:
        before = last.get(unit.cohort)
        if unit.parent:
            assert before is not None
            assert unit.parent == before.fingerprint
            assert np.array_equal(unit.index, before.index)
            on = unit.taken > 0
            assert (unit.taken[on] == before.taken[on] + before.steps).all()
            going += int(on.sum())
        else:
            assert (unit.taken == 0).all()
        last[unit.cohort] = unit
    assert going > 100
    assert set(np.concatenate([unit.index for unit in every])) == set(DATA.train.rows)


def test_a_life_of_one_makes_units_without_parents():
    config = {"schedule": replace(SCHEDULE, life=1)}
    assert not any(unit.parent for each in all_units(**config) for unit in each)  # pyright: ignore[reportArgumentType]


def test_augmentation_and_starts_are_drawn_anew_at_each_visit():
    units = [unit for each in all_units(augment=True) for unit in each if unit.cohort == 0]  # pyright: ignore
    assert len(units) > 2
    assert len({unit.start_seed for unit in units}) == len(units)
    drawn = {unit.augmentation.tobytes() for unit in units if unit.augmentation is not None}
    assert len(drawn) == len(units)
