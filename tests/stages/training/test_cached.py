"""Training on another run's shards: it works, says how far it is to be trusted, and refuses what does not belong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import DATA, SCHEDULE, TRAIN, loop_config, setup_of

from stages.data.splits import Split
from stages.evaluation.judge import JudgeConfig
from stages.numerics import DeviceMemoryError
from stages.rap.process import AttackConfig
from stages.rap.threat import ThreatModel
from stages.training.adapter import Learner
from stages.training.cached import train_on_cache
from stages.training.rounds import run_serially
from stages.training.setup import Setup
from stages.trajectories.shards import AlteredShardError, MissingShardError, shard_key

CONFIG = loop_config(schedule=replace(SCHEDULE, rounds=3), judge=JudgeConfig(images=32), train=replace(TRAIN, ema=0.0))


@pytest.fixture(scope="module")
def other_run(tmp_path_factory) -> tuple[Setup, list[str]]:
    """A run of a few rounds, and the shards that it made."""
    setup = setup_of(tmp_path_factory.mktemp("other"), CONFIG, name="other")
    run_serially(setup)
    return setup, [name for line in setup.journal.lines() for name in line["shards"]]


def new_run(other: Setup, **changes: object) -> Setup:
    config = replace(CONFIG, seed=1, train=replace(CONFIG.train, learning_rate=5e-3), **changes)  # pyright: ignore
    return setup_of(other.root.root, config, name="new")


def test_stored_adversaries_teach_but_flatter(other_run):
    other, shards = other_run
    result = train_on_cache(new_run(other), shards, passes=8)
    assert result.foreign_weights == 2  # rounds 0 and 1 attacked version 0, round 2 version 1
    assert result.updates == len(shards) * 8
    # it holds against what it has seen, and much less against a fresh attack
    assert result.stored.images == 16
    assert result.disagreement == result.stored.value - result.fresh.robust.value
    assert result.disagreement > 0.2
    first = new_run(other).learner().weights()
    assert any(not torch.equal(result.weights[name], value) for name, value in first.items())


def test_the_same_shards_give_the_same_weights(other_run):
    other, shards = other_run
    one, two = (train_on_cache(new_run(other), shards[:2], passes=1).weights for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_device_without_room_for_a_batch_is_told_what_to_lower(other_run, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    other, shards = other_run
    monkeypatch.setattr(Learner, "update", full)
    with pytest.raises(DeviceMemoryError, match=r"no room for schedule\.batch = 16 .*: lower it"):
        train_on_cache(new_run(other), shards[:1], passes=1)


def test_every_segment_is_used_once_a_pass(other_run, monkeypatch):
    other, shards = other_run
    seen: list[int] = []
    update = Learner.update

    def record(self, batch):
        seen.append(len(batch.labels))
        return update(self, batch)

    monkeypatch.setattr(Learner, "update", record)
    train_on_cache(new_run(other, schedule=replace(CONFIG.schedule, batch=10)), shards, passes=2)
    assert seen == [10, 6] * len(shards) * 2


@pytest.mark.parametrize(
    "process",
    [
        AttackConfig(steps=4).process(ThreatModel(norm="Linf", radius=0.1)),
        AttackConfig(steps=4).process(ThreatModel(norm="L2", radius=1.0)),
        AttackConfig(steps=4, denominator=10200).process(ThreatModel(norm="Linf", radius=0.1)),
    ],
    ids=["radius", "norm", "same level of another lattice"],
)
def test_shards_of_another_threat_model_are_refused(process, other_run):
    other, shards = other_run
    with pytest.raises(ValueError, match="use a run of the same threat model"):
        train_on_cache(new_run(other, attack=process), shards, passes=1)


def changed_images(split: Split, kind: str) -> Split:
    if kind == "shape":
        return Split(np.repeat(split.images, 3, 1), split.labels, split.rows)
    if kind == "rows":
        return split.take(np.arange(len(split) - 40))
    return Split(255 - split.images, split.labels, split.rows)


@pytest.mark.parametrize("kind", ["shape", "rows", "pixels"])
def test_shards_of_other_images_are_refused(kind, other_run):
    other, shards = other_run
    setup = replace(new_run(other), train=changed_images(DATA.train, kind))
    with pytest.raises(ValueError, match="belong to other images than this recipe's training split"):
        train_on_cache(setup, shards, passes=1)


def test_shards_that_are_not_committed_or_damaged_are_named(other_run, tmp_path):
    other, shards = other_run
    with pytest.raises(MissingShardError, match="0" * 32):
        train_on_cache(new_run(other), [*shards, "0" * 32], passes=1)
    content = other.root.get(shard_key(shards[1]))
    other.root.put(shard_key(shards[1]), content[:-1])
    with pytest.raises(AlteredShardError, match=shards[1]):
        train_on_cache(new_run(other), shards, passes=1)
    other.root.put(shard_key(shards[1]), content)


def test_augmented_shards_are_recognised_as_the_same_images(tmp_path):
    config = loop_config(augment=True, schedule=replace(SCHEDULE, rounds=1))
    other = setup_of(tmp_path, config, name="other")
    run_serially(other)
    shards = other.journal.lines()[0]["shards"]
    assert train_on_cache(setup_of(tmp_path, config, name="new"), shards, passes=1).updates == 2
