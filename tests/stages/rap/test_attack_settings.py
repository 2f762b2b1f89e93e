"""The settings of an attack: taken exactly where the grid can, else refused with what is allowed."""

import itertools
from dataclasses import replace

import pytest
from attacked_pictures import THREATS
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.rap.process import AttackConfig
from stages.rap.threat import ThreatModel

LINF, L2 = THREATS["Linf"], THREATS["L2"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttackConfig(steps=0), r"attack\.steps \(T\) is 0; an attack process needs at least 1 step"),
        (lambda: AttackConfig(batch=0), r"attack\.batch is 0; it must be at least 1"),
        (lambda: AttackConfig(threads=-1), r"attack\.threads is -1"),
        (lambda: AttackConfig(step_size=0.0), r"attack\.step_size is 0; it must be greater than 0"),
        (lambda: AttackConfig(step_size=float("nan")), r"attack\.step_size is nan"),
        (lambda: AttackConfig(noise_scale=-0.1), r"attack\.noise_scale is -0\.1"),
        (lambda: AttackConfig(step_size=0.21).process(LINF), r"larger than the ball \(threat\.radius 0\.2\)"),
        (lambda: AttackConfig(step_size=1.01).process(L2), r"larger than the ball \(threat\.radius 1\)"),
        (
            lambda: AttackConfig(start="none", noise_scale=0.1),
            r"noise_scale is 0\.1, but with attack\.start none there",
        ),
        (lambda: AttackConfig(noise_scale=0.3).process(LINF), r"attack\.noise_scale is 0\.3, larger than the ball"),
        (
            lambda: AttackConfig(step_size=0.0005).process(LINF),
            r"changes by more than 1 %; the nearest allowed are 2/5100 = 0\.000392157 and 3/5100 = 0\.000588235",
        ),
        (
            lambda: AttackConfig(noise_scale=0.0005).process(LINF),
            r"attack\.noise_scale is 0\.0005, which the lattice of 1/5100 changes by more than 1 %",
        ),
        (
            lambda: AttackConfig(step_size=0.0001).process(LINF),
            r"the nearest allowed are 1/5100 = 0\.000196078 and 2/5100",
        ),
        (
            lambda: AttackConfig().process(ThreatModel(norm="L2", radius=0.0015)),
            r"threat\.radius is 0\.0015, which the lattice of 1/1020",
        ),
        (lambda: AttackConfig(denominator=1000).process(LINF), "must be a multiple of 255 up to 16320"),
        (lambda: ThreatModel(radius=0.0), r"threat\.radius is 0; it must be greater than 0"),
        (lambda: ThreatModel(radius=8.0), r"divide a radius in 0\.\.255 by 255"),
    ],
)
def test_an_attack_that_makes_no_sense_is_refused_with_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@settings(deadline=None, max_examples=100)
@given(level=st.integers(1, 1020), error=st.floats(-0.02, 0.02))
def test_a_length_is_taken_exactly_when_the_grid_changes_it_by_at_most_one_percent(level, error):
    value = level / 5100 * (1 + error)
    nearest = max(1, round(value * 5100))
    changed = abs(nearest / 5100 - value) / value
    process = replace(AttackConfig(), step_size=min(value, 0.2))
    if value > 0.2:
        return
    if changed > 0.0101:
        with pytest.raises(ValueError, match="changes by more than 1 %"):
            process.process(LINF)
    elif changed < 0.0099:
        assert process.process(LINF).step == nearest


def test_the_default_step_is_two_and_a_half_radii_over_t():
    for steps, norm in itertools.product((1, 2, 3, 10, 40), THREATS):
        process = AttackConfig(steps=steps).process(THREATS[norm])
        assert process.step == round(min(2.5 / steps, 1) * process.bound)
