import numpy as np
import pytest
import torch
from known_models import Digits, largest_margins, load_images, train_linear
from unchecked import unchecked_types

from stages.evaluation.accuracy import to_float
from stages.evaluation.attacks import NamedAttack, run_attack
from stages.evaluation.classical import ClassicalConfig, Method, classical_attack
from stages.evaluation.verdict import distances
from stages.rap.threat import ThreatModel

LINF, L2 = ThreatModel(norm="Linf", radius=0.14), ThreatModel(norm="L2", radius=0.8)
CASES: list[tuple[Method, ThreatModel]] = [
    ("gaussian-noise", L2),
    ("deepfool", L2),
    ("deepfool", LINF),
    ("bim", L2),
    ("bim", LINF),
    ("fgsm", L2),
    ("fgsm", LINF),
]


@pytest.fixture(scope="module")
def digits():
    return load_images(4, 60)


@pytest.fixture(scope="module")
def model():
    return train_linear(*load_images(4, 400), 4)


def attacked(model, digits: Digits, threat: ThreatModel, **settings):
    config = ClassicalConfig(**settings)
    return run_attack(NamedAttack(config.name, classical_attack(config)), model, *digits, threat)


@pytest.mark.parametrize(("method", "threat"), CASES)
def test_nothing_that_foolbox_returns_is_outside_of_the_ball(model, digits: Digits, method: Method, threat):
    found = attacked(model, digits, threat, method=method, step_size=None)
    assert found.refused == 0
    measured = distances(torch.from_numpy(found.adversarial), to_float(digits[0]), threat.norm)
    assert np.array_equal(measured, found.distance)
    assert found.distance.max() <= threat.radius + 1e-6
    assert np.array_equal(found.distance > 0, found.clean & ~found.robust)


def test_on_a_linear_model_no_attack_finds_more_than_there_is_and_bim_finds_nearly_all(model, digits: Digits):
    exact = largest_margins(model, *digits, LINF.radius).numpy() < 0
    masks = {
        method: attacked(model, digits, LINF, method=method, step_size=None).robust
        for method in ("deepfool", "bim", "fgsm")
    }
    assert all(np.all(mask >= exact) for mask in masks.values())
    assert masks["bim"].sum() - exact.sum() <= 3  # it climbs the cross-entropy, not the margin


def test_bim_as_the_paper_ran_it_covers_half_of_the_ball_only(model, digits: Digits):
    wide = ThreatModel(norm="Linf", radius=0.3)
    paper = attacked(model, digits, wide, method="bim")
    edge = attacked(model, digits, wide, method="bim", step_size=None)
    assert paper.distance.max() <= 20 * 2 / 255 + 1e-6
    assert edge.robust.sum() < paper.robust.sum()


def test_noise_is_the_same_for_the_same_seed_and_leaves_the_random_state_alone(model, digits: Digits):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    one, same = (attacked(model, digits, ThreatModel(norm="L2", radius=3.0), method="gaussian-noise") for _ in range(2))
    assert torch.equal(torch.rand(2), expected)
    assert np.array_equal(one.adversarial, same.adversarial)
    assert one.robust.sum() < one.clean.sum()


def test_what_does_not_exist_is_refused(model, digits: Digits):
    with pytest.raises(ValueError, match="for L2 only"):
        attacked(model, digits, LINF, method="gaussian-noise")
    with pytest.raises(ValueError, match="no steps"):
        ClassicalConfig(method="fgsm", steps=3)
    with pytest.raises(ValueError, match="draws is 0"):
        ClassicalConfig(draws=0)
    with unchecked_types(), pytest.raises(ValueError, match="allowed are gaussian-noise, deepfool, bim, fgsm"):
        ClassicalConfig(method="cw")  # pyright: ignore[reportArgumentType]
