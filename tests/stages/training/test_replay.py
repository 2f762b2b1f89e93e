"""The replay window: what a batch holds, against states decoded one by one from the shards."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import THREATS, loop_config, setup_of

from stages.data.augmentation import augment
from stages.training.replay import ReplayWindow
from stages.training.rounds import Generator
from stages.trajectories.cache import TrajectoryCache
from stages.trajectories.shards import ShardError


def generated(tmp_path, norm: str = "Linf", **changes: object):
    """Four rounds of shards against the first weights, the last warm, and a window that holds them."""
    setup = setup_of(tmp_path, loop_config(norm, **changes))
    cache, window = TrajectoryCache(setup.root), ReplayWindow(setup.train)
    weights = setup.learner().weights()
    generator, names = Generator(setup, cache), ["v0"] * 4
    for number in range(4):
        units = setup.units.of(number, names)
        for unit in units:
            generator.generate(unit, lambda: weights)
        window.add(number, [cache.read(unit.fingerprint) for unit in units])
    return setup, cache, window, names


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "augmented"])
def test_a_batch_holds_the_states_of_the_shards_bit_for_bit(norm, augmented, tmp_path):
    setup, cache, window, names = generated(tmp_path, norm, augment=augmented)
    lattice = setup.config.attack.lattice
    assert any(unit.made.any() for unit in setup.units.of(3, names))
    for batch in setup.schedule.batches(3):
        batch.states[::5] = 0  # the clean image
        got = window.batch(batch)
        for place, (number, slot, state) in enumerate(zip(batch.rounds, batch.slots, batch.states, strict=True)):
            unit = setup.units.of(int(number), names)[slot // 16]
            row = int(slot % 16)
            position = setup.train.rows.tolist().index(unit.index[row])
            image = torch.from_numpy(setup.train.images[position : position + 1])
            segments = cache.read(unit.fingerprint)
            if augmented:
                assert segments.augmentation is not None
                image = augment(image, segments.augmentation[row : row + 1])
            images = torch.zeros(16, *image.shape[1:], dtype=torch.uint8)
            images[row] = image
            wanted = segments.states(lattice.from_bytes(images))[state, row]
            clean = lattice.to_float(lattice.from_bytes(image))[0]
            assert torch.equal(got.clean[place], clean)
            assert torch.equal(got.states[place], clean if state == 0 else lattice.to_float(wanted))
            assert got.labels[place] == setup.train.labels[position]
            assert got.t[place] == (0 if state == 0 else unit.made[row] + state)
            assert got.last[place] == (state == 2)
        assert torch.equal(got.fresh, torch.from_numpy(batch.fresh))


def test_rounds_outside_the_window_are_forgotten(tmp_path):
    setup, _, window, _ = generated(tmp_path)
    batch = setup.schedule.batches(3)[0]
    wanted = window.batch(batch)
    window.keep(range(2, 4))
    assert [number in window for number in range(4)] == [False, False, True, True]
    kept = batch.rounds >= 2
    with pytest.raises(KeyError):
        window.batch(setup.schedule.batches(0)[0])
    some = replace(batch, **{name: column[kept] for name, column in vars(batch).items()})
    assert torch.equal(window.batch(some).states, wanted.states[torch.from_numpy(kept)])


def test_a_damaged_shard_is_named_when_training_reads_it(tmp_path):
    setup, cache, _, names = generated(tmp_path)
    unit = setup.units.of(1, names)[1]
    file = cache.path(unit.fingerprint) / "nonzero/c.0.0.0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(bytes(content))
    with pytest.raises(ShardError, match=unit.fingerprint):
        cache.read(unit.fingerprint)


def test_every_slot_of_a_round_can_be_asked_for(tmp_path):
    setup, _, window, names = generated(tmp_path)
    batch = setup.schedule.batches(3)[0]
    slots = np.arange(32)
    whole = replace(
        batch,
        rounds=np.full(32, 1),
        slots=slots,
        states=np.full(32, 1),
        fresh=np.zeros(32, np.bool_),
    )
    rows = np.concatenate([unit.index for unit in setup.units.of(1, names)])
    labels = setup.train.labels[setup.train.positions(rows)]
    assert window.batch(whole).labels.tolist() == labels.tolist()
