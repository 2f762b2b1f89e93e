"""What a round trains on: one state of each segment, decoded once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import DATA, SCHEDULE, THREATS, loop_config, setup_of

from stages.data.augmentation import augment
from stages.rap.process import AttackConfig
from stages.training.batches import RoundExamples
from stages.training.rounds import run_serially
from stages.training.schedule import Batch
from stages.trajectories.shards import read_shard


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("augmented", [False, True])
def test_batches_hold_the_states_that_were_stored(norm, augmented, tmp_path):
    setup = setup_of(tmp_path, loop_config(norm, augment=augmented, schedule=replace(SCHEDULE, rounds=4)))
    run_serially(setup)
    shards = [read_shard(setup.root, name) for name in setup.journal.lines()[3]["shards"]]
    parts = [shard.segments for shard in shards]
    assert any((part.taken > 0).any() for part in parts)
    order = np.random.default_rng(0).permutation(sum(map(len, parts)))
    batches = [Batch(places=part, states=np.arange(len(part)) % 3) for part in np.array_split(order, 3)]
    examples = RoundExamples(parts, batches, setup.train, starts=True)
    assert all(batch.starts is None for batch in RoundExamples(parts, batches, setup.train).batches(batches))
    lattice, seen = setup.config.attack.lattice, 0
    for batch, made in zip(batches, examples.batches(batches), strict=True):
        for each, (place, state) in enumerate(zip(batch.places, batch.states, strict=True)):
            unit, row = divmod(int(place), len(parts[0]))
            part = parts[unit]
            position = DATA.train.rows.tolist().index(int(part.index[row]))
            image = torch.from_numpy(DATA.train.images[position : position + 1])
            if part.augmentation is not None:
                image = augment(image, part.augmentation[row : row + 1])
            clean = lattice.from_bytes(image)
            states = part.states(torch.cat([clean] * len(part)))[:, row]
            wanted = clean[0] if state == 0 else states[state]
            assert torch.equal(made.states[each], lattice.to_float(wanted))
            assert made.starts is not None
            assert torch.equal(made.starts[each], lattice.to_float(states[0]))
            assert torch.equal(made.clean[each], lattice.to_float(clean)[0])
            assert made.labels[each] == DATA.train.labels[position]
            assert made.t[each] == (0 if state == 0 else part.taken[row] + state)
            seen += 1
    assert seen == len(order)


def test_conditioning_on_the_state_asks_for_trajectories_within_t():
    attack = AttackConfig(steps=4, batch=16, conditioning="state").process(THREATS["Linf"])
    loop_config(attack=attack, schedule=replace(SCHEDULE, life=2))
    with pytest.raises(ValueError, match=r"up to 6 steps .* more than attack.steps \(T = 4\)"):
        loop_config(attack=attack, schedule=replace(SCHEDULE, life=3))
