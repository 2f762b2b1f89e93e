"""The lattice: what is stored is what the model saw, bit for bit."""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from unchecked import unchecked_types

from stages.rap.threat import DENOMINATORS, Lattice, Norm, ThreatModel, check_radius, default_denominator

DENOMINATORS_TO_TRY = [*DENOMINATORS.values(), 255, 16320]


@pytest.mark.parametrize("denominator", DENOMINATORS_TO_TRY)
def test_the_256_clean_values_stay_bit_identical(denominator):
    values = torch.arange(256).to(torch.uint8)
    lattice = Lattice(denominator)
    seen = lattice.to_float(lattice.from_bytes(values)).numpy()
    plain = np.arange(256).astype(np.float32) / np.float32(255)
    assert np.array_equal(seen.view(np.uint32), plain.view(np.uint32))
    assert torch.equal(torch.from_numpy(seen), values.float() / 255)


@pytest.mark.parametrize("denominator", DENOMINATORS_TO_TRY)
def test_every_level_is_its_float32_quotient(denominator):
    levels = np.arange(denominator + 1)
    seen = Lattice(denominator).to_float(torch.from_numpy(levels.astype(np.int16))).numpy()
    quotient = levels.astype(np.float32) / np.float32(denominator)
    assert np.array_equal(seen.view(np.uint32), quotient.view(np.uint32))
    assert len(np.unique(seen)) == denominator + 1


def test_a_reciprocal_would_change_values_so_dividing_matters():
    levels = np.arange(5101).astype(np.float32)
    assert (levels * (np.float32(1) / np.float32(5100)) != levels / np.float32(5100)).any()


@pytest.mark.parametrize("radius", [0.3, 0.2, 0.05, 0.02, 8 / 255, 2 / 255, 1.0])
def test_the_usual_lengths_are_whole_levels(radius):
    assert Lattice(5100).level(radius, "radius") / 5100 == pytest.approx(radius, rel=1e-12)


def test_snapping_never_gives_zero():
    assert Lattice(5100).snap(1e-9) == 1 / 5100
    assert Lattice(5100).snap(0.0501) == 256 / 5100


@pytest.mark.parametrize("denominator", [0, 254, 256, 5000, 16575])
def test_a_grid_that_misses_the_clean_values_or_overflows_is_refused(denominator):
    with pytest.raises(ValueError, match="must be a multiple of 255 up to 16320"):
        Lattice(denominator)


@pytest.mark.parametrize(
    "radius", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2), Decimal("0.5")]
)
def test_a_radius_of_any_library_is_a_number(radius: Any):
    with unchecked_types():
        threat = ThreatModel(norm="Linf", radius=radius)
    assert type(threat.radius) is float
    assert threat == ThreatModel(norm="Linf", radius=0.5)


@pytest.mark.parametrize(
    ("radius", "message"),
    [
        ("8/255", "is the text '8/255'; it must be a number of pixels .*without the quotes"),
        (True, "is the bool True; it must be a number"),
        (np.True_, "is the bool.* it must be a number"),
        (None, "is the NoneType None; it must be a number"),
        (1j, "is the complex 1j; it must be a number"),
        ([0.1], r"is the list \[0.1\]; it must be a number"),
        (np.array([0.1, 0.2]), "is the ndarray .* it must be a number"),
        (torch.tensor([0.1]), "is the Tensor .* it must be a number"),
        (math.nan, "is nan; it must be greater than 0, and finite"),
        (math.inf, "is inf; it must be greater than 0, and finite"),
        (0.0, "is 0; it must be greater than 0"),
        (-0.1, "is -0.1; it must be greater than 0"),
        (8.0, "is 8, but pixels lie in .*divide a radius in 0..255 by 255"),
    ],
)
def test_a_radius_that_is_no_length_is_refused(radius: Any, message: str):
    with unchecked_types(), pytest.raises(ValueError, match=f"threat.radius {message}"):
        ThreatModel(norm="Linf", radius=radius)


@pytest.mark.parametrize("norm", ["linf", "L0", np.inf, 2, None])
def test_a_norm_by_another_name_is_refused(norm: Any):
    with unchecked_types(), pytest.raises(ValueError, match="allowed are Linf, L2, L1"):
        ThreatModel(norm=norm)


@pytest.mark.parametrize(("norm", "largest"), [("L2", 28.0), ("L1", 784.0)])
def test_a_ball_that_holds_every_image_is_a_radius_in_another_unit(norm: Norm, largest: float):
    check_radius(ThreatModel(norm=norm, radius=largest - 0.01), 784)
    with pytest.raises(ValueError, match=r"divide one in 0..255 by 255"):
        check_radius(ThreatModel(norm=norm, radius=largest), 784)


def test_nothing_is_trained_in_l1():
    with pytest.raises(ValueError, match="evaluated but not trained"):
        default_denominator("L1")
