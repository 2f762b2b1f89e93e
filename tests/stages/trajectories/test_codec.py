import re

import numpy as np
import pytest
import torch
from examples import attacked, random_segments
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.rap.process import AttackConfig
from stages.rap.threat import ThreatModel
from stages.trajectories.codec import Segments, pack_delta, pack_signs, unpack_delta, unpack_signs

LINF = AttackConfig(steps=5).process(ThreatModel(norm="Linf", radius=0.2))
FREE = AttackConfig(steps=5, projection=False).process(ThreatModel(norm="Linf", radius=0.2))
L2 = AttackConfig(steps=5).process(ThreatModel(norm="L2", radius=1.0))
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))

CASES = {
    "Linf": {},
    "Linf with a stored start": {"derived": False},
    "Linf gaussian start": {"start": "gaussian"},
    "Linf clean start": {"start": "none"},
    "Linf warm": {"warm": True},
    "Linf one step": {"steps": 1},
    "Linf without projection": {"project": False},
    "L2": {"norm": "L2"},
    "L2 clean start": {"norm": "L2", "start": "none"},
    "L2 warm": {"norm": "L2", "warm": True},
    "L2 one step": {"norm": "L2", "steps": 1},
    "L2 without projection": {"norm": "L2", "project": False},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_decoded_states_are_the_attacked_ones(case):
    made = attacked(**case)
    assert torch.equal(made.segments.states(made.clean), made.states)


def test_the_attack_of_these_tests_meets_zero_gradients_and_both_ends_of_the_range():
    made = attacked()
    assert made.segments.signs is not None
    assert set(made.segments.signs.unique().tolist()) == {-1, 0, 1}
    assert made.states.min() == 0
    assert made.states.max() == 5100


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 9), steps=st.integers(1, 6), pixels=st.integers(1, 40))
def test_signs_survive_packing(seed, n, steps, pixels):
    drawn = np.random.default_rng(seed).integers(-1, 2, (steps, n, pixels)).astype(np.int8)
    positive, nonzero = pack_signs(torch.from_numpy(drawn))
    assert positive.shape == nonzero.shape == (n, steps, -(-pixels // 8))
    assert np.array_equal(unpack_signs(positive, nonzero, pixels=pixels).numpy(), drawn)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 9), states=st.integers(2, 7), pixels=st.integers(1, 20))
def test_differences_survive_packing_up_to_the_largest(seed, n, states, pixels):
    drawn = np.random.default_rng(seed).choice([-16320, 16320, -1, 0, 1], (states, n, pixels)).astype(np.int16)
    planes = pack_delta(torch.from_numpy(drawn))
    assert planes.shape[::2] == (n, -(-states * pixels // 8))
    assert np.array_equal(unpack_delta(planes, states=states, pixels=pixels).numpy(), drawn)


def test_an_attack_that_goes_on_as_before_packs_to_zeros():
    delta = torch.tensor([5, -3, -3, -3, -2], dtype=torch.int16).reshape(5, 1, 1)
    # 10, 5, 0, 0, 2 in zigzag: bit 0 of the second, bit 1 of the first, and so on
    assert pack_delta(delta).tolist() == [[[0b00010], [0b10001], [0b00010], [0b00001]]]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 9),
    steps=st.integers(1, 6),
    shape=SHAPES,
    process=st.sampled_from([LINF, FREE, L2]),
    warm=st.booleans(),
)
def test_any_state_of_any_segment_is_the_one_among_all_states(seed, n, steps, shape, process, warm):
    segments = random_segments(seed, n=n, steps=steps, shape=shape, process=process, warm=warm)
    draw = np.random.default_rng(seed)
    clean = process.lattice.from_bytes(torch.from_numpy(draw.integers(0, 256, (n, *shape)).astype(np.uint8)))
    states = segments.states(clean)
    assert torch.equal(states[steps, torch.arange(n)], segments.states_at(clean, torch.full((n,), steps)))
    assert torch.equal(states[steps], segments.last_states(clean))
    rows, t = (torch.from_numpy(draw.integers(0, top, 12)) for top in (n, steps + 1))
    assert torch.equal(states[t, rows], segments.states_at(clean[rows], t, rows))


def test_blocks_of_replayed_pixels_do_not_change_a_state(monkeypatch):
    made = attacked(n=9)
    t = torch.tensor([4, 0, 2, 3, 3, 1, 4, 0, 2])
    monkeypatch.setattr("stages.trajectories.codec.BLOCK_PIXELS", 2 * made.clean[0].numel())
    assert torch.equal(made.segments.states_at(made.clean, t), made.states[t, torch.arange(9)])


def test_random_linf_segments_stay_in_the_ball_and_in_the_box_to_the_last_level():
    segments = random_segments(5, n=8, steps=6, shape=(3, 6, 6), process=LINF)
    images = torch.randint(0, 256, (8, 3, 6, 6), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    clean = LINF.lattice.from_bytes(images)
    states = segments.states(clean)
    assert int((states - clean).abs().max()) == LINF.bound
    assert int(states.min()) == 0
    assert int(states.max()) == LINF.denominator


def test_a_state_beyond_the_last_step_is_refused():
    made = attacked(steps=4)
    with pytest.raises(ValueError, match=re.escape("states 0 to 5 were asked for; the segments have 0 to 4")):
        made.segments.states_at(made.clean, torch.tensor([0, 1, 2, 3, 4, 5]))


def parts(process, **changes):
    n, pixels = 2, 12
    linf = {"signs": torch.zeros(3, n, pixels, dtype=torch.int8), "start_seed": 1}
    l2 = {"delta": torch.zeros(4, n, pixels, dtype=torch.int16)}
    given = {"index": torch.arange(n), "taken": torch.zeros(n, dtype=torch.int16), "shape": (3, 2, 2)}
    return {"process": process, **given, **(l2 if process.norm == "L2" else linf), **changes}


REFUSED = {
    "Linf without signs": (LINF, {"signs": None}, "Linf segments are signs and a start"),
    "Linf without start": (LINF, {"start_seed": None}, "Linf segments are signs and a start"),
    "Linf with two starts": (LINF, {"start": torch.zeros(2, 12, dtype=torch.int16)}, "start or start_seed"),
    "L2 without differences": (L2, {"delta": None}, "L2 segments are their differences"),
    "L2 with a seed": (L2, {"start_seed": 1}, "L2 segments are their differences"),
    "a warm start from a seed": (LINF, {"taken": torch.tensor([0, 4], dtype=torch.int16)}, "have had up to 4 steps"),
    "images of another size": (LINF, {"shape": (3, 3, 3)}, "12 pixels for images of shape"),
    "no step": (L2, {"delta": torch.zeros(1, 2, 12, dtype=torch.int16)}, "2 segments of 0 steps"),
}


@pytest.mark.parametrize(("process", "changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_parts_that_do_not_belong_together_are_refused(process, changes, message):
    assert len(Segments(**parts(process))) == 2
    with pytest.raises(ValueError, match=re.escape(message)):
        Segments(**parts(process, **changes))
