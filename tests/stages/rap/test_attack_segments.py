"""Alg. 1 in segments: they go on as if made at once, from starts and at a t that no batch changes."""

import numpy as np
import pytest
import torch
from attacked_models import pictures, robust
from attacked_pictures import ROWS, STARTS, THREATS, process_of, run, start_of
from torch import Tensor

from stages.rap.attack import Trajectory, attack
from stages.rap.norms import draw_start


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("conditioning", ["deployed", "state"])
@pytest.mark.parametrize("first", [1, 4])
def test_a_segment_that_goes_on_equals_one_made_at_once(norm, conditioning, first):
    process = process_of(norm, conditioning=conditioning)
    whole = run(process)
    taken = torch.full((8,), first)
    clean = process.lattice.from_bytes(pictures())
    begun = run(process, times=process.times(first))
    ended = run(process, start=begun.levels[-1] - clean, times=process.times(6 - first, taken))
    assert torch.equal(torch.cat([begun.levels, ended.levels[1:]]), whole.levels)
    assert torch.equal(torch.cat([begun.losses, ended.losses]), whole.losses)


def test_the_steps_already_taken_matter_where_the_adapter_is_given_them():
    for conditioning, equal in (("state", False), ("deployed", True)):
        process = process_of(conditioning=conditioning)
        fresh, warm = run(process), run(process, times=process.times(6, torch.full((8,), 2)))
        assert torch.equal(fresh.levels, warm.levels) == equal


@pytest.mark.parametrize(
    ("conditioning", "expected"), [("deployed", [6, 6, 6, 6, 6, 6]), ("state", [2, 3, 4, 5, 6, 7])]
)
def test_the_adapter_is_asked_at_the_t_of_the_conditioning(conditioning, expected):
    process, model = process_of(conditioning=conditioning), robust()
    labels = torch.zeros(8, dtype=torch.int64)
    attack(model, pictures(), labels, process, start_of(process), process.times(6, torch.full((8,), 2)))
    assert model.adapter.times() == expected  # pyright: ignore


def test_random_conditioning_covers_all_t_and_repeats_with_its_seed():
    process, model = process_of(conditioning="random"), robust()
    labels = torch.zeros(8, dtype=torch.int64)

    def attacked(seed: int) -> Tensor:
        return attack(model, pictures(), labels, process, start_of(process), process.times(6, labels, seed)).levels

    first = attacked(seed=1)
    asked = torch.stack([t for _, t in model.adapter.asked])  # pyright: ignore
    assert set(asked.unique().tolist()) == {1, 2, 3, 4, 5, 6}
    assert torch.equal(first, attacked(seed=1))
    assert not torch.equal(first, attacked(seed=2))


@pytest.mark.parametrize("norm", THREATS)
def test_the_batch_hardly_changes_a_trajectory(norm):
    # sums over a batch of another size may round otherwise and turn a sign at a gradient near zero
    process = process_of(norm)
    model, labels, start = robust(), torch.zeros(8, dtype=torch.int64), start_of(process)
    whole = attack(model, pictures(), labels, process, start).levels
    for size in (1, 3):
        parts = [
            attack(model, pictures()[part], labels[part], process, start[part])
            for part in (slice(first, first + size) for first in range(0, 8, size))
        ]
        joined = Trajectory.join(parts).levels
        assert (joined != whole).float().mean() < 0.01


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("start", STARTS)
def test_a_start_depends_on_seed_and_row_and_not_on_the_batch(norm, start):
    process = process_of(norm, start=start)
    drawn = start_of(process)
    alone = draw_start(process, 5, ROWS[3:4], (1, 8, 8))
    assert torch.equal(drawn[3:4], alone)
    assert torch.equal(drawn, start_of(process, seed=6)) == (start == "none")
    if start != "none":
        assert len({tuple(row.flatten().tolist()) for row in drawn}) == 8


def test_starts_have_the_distribution_of_their_name():
    rows = np.arange(500)
    linf = draw_start(process_of(), 0, rows, (1, 8, 8)).double()
    assert linf.abs().max() == 1020
    assert abs(linf.std() / 1020 - 3**-0.5) < 0.02
    gaussian = draw_start(process_of(start="gaussian", noise_scale=0.05, projection=False), 0, rows, (1, 8, 8))
    assert abs(gaussian.double().std() / 255 - 1) < 0.02
    length = draw_start(process_of("L2"), 0, rows, (1, 8, 8)).double().flatten(1).norm(dim=1) / 1020
    assert length.max() <= 1
    # uniform in a ball of 64 dimensions: the mean length is 64/65; truncation toward zero takes up to 1 %
    assert abs(length.mean() - 64 / 65) < 0.01
