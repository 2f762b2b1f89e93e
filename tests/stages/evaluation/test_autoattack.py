import dataclasses
import logging
import sys

import numpy as np
import pytest
import torch
from known_models import (
    Digits,
    GradientInside,
    Wrapped,
    largest_margins,
    load_images,
    noisy,
    quantised,
    scaled,
    train_linear,
)
from pyautoattack import AutoAttack
from unchecked import unchecked_types

from stages.evaluation.accuracy import to_float
from stages.evaluation.autoattack import AutoAttackConfig, attack_chunk, square_flag
from stages.evaluation.verdict import verify_chunk
from stages.rap.threat import ThreatModel

CLASSES = 4
THREAT = ThreatModel(norm="Linf", radius=0.14)
CONFIG = AutoAttackConfig(batch=7, seed=3)


@pytest.fixture(scope="module")
def digits():
    return load_images(CLASSES, 12)


@pytest.fixture(scope="module")
def model():
    return train_linear(*load_images(CLASSES, 400), CLASSES)


@pytest.fixture(scope="module")
def verdict(model, digits: Digits):
    return attack_chunk(model, *digits, THREAT, config=CONFIG)


def test_the_verdicts_are_those_of_one_call_of_the_standard_version(model, digits: Digits, verdict):
    official = AutoAttack(model, norm="Linf", eps=THREAT.radius, seed=CONFIG.seed, version="standard")
    official.apgd_targeted.n_target_classes = official.fab.n_target_classes = CLASSES - 1
    images, labels = digits
    adversarial, predicted = official.run_standard_evaluation(to_float(images), labels, batch_size=CONFIG.batch)
    assert np.array_equal(verdict.robust, (predicted == labels).numpy())
    assert np.array_equal(verdict.adversarial, adversarial.numpy())


def test_robust_accuracy_on_a_linear_model_is_the_exact_one(model, digits: Digits, verdict):
    exact = largest_margins(model, *digits, THREAT.radius).numpy()
    assert np.abs(exact).min() > 1e-3
    assert 3 < (exact < 0).sum() < 9
    assert np.array_equal(verdict.robust, exact < 0)


def test_every_break_has_a_name_and_every_attack_its_time(verdict, digits: Digits):
    assert len(verdict.broken_by) == len(digits[0])
    assert set(verdict.broken_by) <= {"clean", "apgd-ce", "apgd-t", "fab-t", "square", None}
    assert {"apgd-ce", None} <= set(verdict.broken_by)
    assert list(verdict.seconds) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert min(verdict.seconds.values()) > 0
    assert verdict.flags == ()


def test_images_that_stood_are_returned_as_they_are(verdict, digits: Digits):
    clean = to_float(digits[0]).numpy()
    assert np.array_equal(verdict.adversarial[verdict.robust], clean[verdict.robust])
    assert np.all((verdict.distance == 0) == verdict.robust)


def test_a_true_verdict_is_verified(model, digits: Digits, verdict):
    verification = verify_chunk(model, *digits, verdict, THREAT)
    assert verification.holds
    assert verification.broken == int((~verdict.robust).sum())
    assert verification.largest_distance == pytest.approx(THREAT.radius, abs=1e-6)


def _altered(verdict, row, change):
    adversarial = verdict.adversarial.copy()
    change(adversarial[row])
    return dataclasses.replace(verdict, adversarial=adversarial)


def test_verification_names_what_is_outside_the_ball(model, digits: Digits, verdict):
    row = verdict.broken_by.index("apgd-ce")
    middle = np.abs(to_float(digits[0])[row].numpy() - 0.5).argmin()
    moved = _altered(verdict, row, lambda image: image.put(middle, image.flat[middle] + 0.3))
    assert verify_chunk(model, *digits, moved, THREAT).outside_ball == (row,)


def test_verification_names_what_is_outside_the_range(model, digits: Digits, verdict):
    row = verdict.broken_by.index("apgd-ce")
    for value in (1.0000001, -1e-6, np.nan):
        moved = _altered(verdict, row, lambda image, value=value: image.put(0, value))
        assert verify_chunk(model, *digits, moved, THREAT).outside_range == (row,)
    assert verify_chunk(model, *digits, moved, THREAT).outside_ball == (row,)


def test_verification_names_an_adversary_that_fools_nobody(model, digits: Digits, verdict):
    row = verdict.broken_by.index("apgd-ce")
    clean = to_float(digits[0])[row].numpy()
    moved = _altered(verdict, row, lambda image: np.copyto(image, clean))
    verification = verify_chunk(model, *digits, moved, THREAT)
    assert verification.judged_otherwise == (row,)
    assert not verification.holds


def test_verification_names_an_image_that_is_called_robust_and_is_misclassified(model, digits: Digits, verdict):
    images, labels = digits
    row = verdict.broken_by.index(None)
    wrong = labels.clone()
    wrong[row] = (wrong[row] + 1) % CLASSES
    assert verify_chunk(model, images, wrong, verdict, THREAT).judged_otherwise == (row,)


def test_an_image_that_is_misclassified_as_it_is_counts_as_broken_and_is_not_attacked(model, digits: Digits):
    images, labels = digits
    verdict = attack_chunk(model, images[:3], (labels[:3] + 1) % CLASSES, THREAT, config=CONFIG)
    assert verdict.broken_by == ("clean",) * 3
    assert verdict.seconds == {}
    assert not verdict.clean.any()
    assert np.array_equal(verdict.adversarial, to_float(images[:3]).numpy())


def test_l2_adversaries_are_verified_too(model, digits: Digits):
    threat = ThreatModel(norm="L2", radius=1.5)
    verdict = attack_chunk(model, *digits, threat, config=CONFIG)
    verification = verify_chunk(model, *digits, verdict, threat)
    assert verification.holds
    assert verification.broken > 6
    assert threat.radius - 0.01 < verification.largest_distance <= threat.radius + 1e-6


def test_l1_adversaries_are_those_of_the_official_code_and_are_verified(model, digits: Digits):
    threat, config = (
        ThreatModel(norm="L1", radius=6.0),
        AutoAttackConfig(version="custom", attacks=("apgd-ce",), batch=7),
    )
    verdict = attack_chunk(model, *digits, threat, config=config)
    verification = verify_chunk(model, *digits, verdict, threat)
    assert verification.holds
    assert 5.9 < verification.largest_distance <= 6 + 1e-5
    official = AutoAttack(model, norm="L1", eps=6.0, seed=0, version="standard")
    official.attacks_to_run = ["apgd-ce"]
    _, predicted = official.run_standard_evaluation(to_float(digits[0]), digits[1], batch_size=7)
    assert np.array_equal(verdict.robust, (predicted == digits[1]).numpy())


def test_custom_attacks_run_in_their_order_with_the_settings_of_the_standard_version(model, digits: Digits):
    config = AutoAttackConfig(version="custom", attacks=("apgd-t", "apgd-ce"), batch=7)
    verdict = attack_chunk(model, *digits, THREAT, config=config)
    assert list(verdict.seconds) == ["apgd-t", "apgd-ce"]
    assert set(verdict.broken_by) <= {"clean", "apgd-t", "apgd-ce", None}


def test_a_quantiser_hides_gradients_and_is_flagged(model, digits: Digits):
    images, labels = digits
    verdict = attack_chunk(quantised(model), images[:4], labels[:4], ThreatModel(radius=0.3), config=CONFIG)
    assert any("4 points with zero gradient" in flag for flag in verdict.flags)
    assert "square" in verdict.broken_by
    assert square_flag(verdict.broken_by) is not None


def test_saturated_logits_are_broken_all_the_same(model, digits: Digits, verdict):
    images, labels = digits
    broken = np.flatnonzero(~verdict.robust)[:4]
    again = attack_chunk(scaled(model), images[broken], labels[broken], THREAT, config=CONFIG)
    assert not again.robust.any()


def test_randomness_probabilities_and_inner_gradients_are_flagged(model, digits: Digits):
    images, labels = digits[0][:2], digits[1][:2]
    threat = ThreatModel(radius=0.5)
    cases = {
        "randomized defense": noisy(model),
        "probability distribution": Wrapped(model, after=lambda logits: logits.softmax(1)).eval(),
        "dynamic defense": GradientInside(model).eval(),
    }
    for message, faulty in cases.items():
        flags = attack_chunk(faulty, images, labels, threat, config=CONFIG).flags
        assert [message in flag for flag in flags].count(True) == 1, (message, flags)


def test_the_version_for_random_models_runs_its_attacks_and_does_not_flag_them(model, digits):
    images, labels = digits[0][:2], digits[1][:2]
    config = AutoAttackConfig(version="rand")
    verdict = attack_chunk(noisy(model), images, labels, ThreatModel(radius=0.5), config=config)
    assert verdict.broken_by == ("apgd-ce", "apgd-ce")
    assert verdict.flags == ()


def test_a_model_that_follows_its_gradient_does_not_flag_the_next_one(model, digits: Digits):
    images, labels = digits[0][:2], digits[1][:2]
    threat = ThreatModel(radius=0.5)
    attack_chunk(GradientInside(model).eval(), images, labels, threat, config=CONFIG)
    assert attack_chunk(model, images, labels, threat, config=CONFIG).flags == ()


def test_the_attack_leaves_no_trace_in_the_process(digits: Digits):
    model = train_linear(*load_images(CLASSES, 50), CLASSES).train()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    tracer, logger = sys.gettrace(), logging.getLogger("auto-attack")
    handlers, propagate = list(logger.handlers), logger.propagate
    attack_chunk(model, digits[0][:2], digits[1][:2], ThreatModel(radius=0.5), config=CONFIG)
    assert torch.equal(torch.rand(3), expected)
    assert sys.gettrace() is tracer
    assert (logger.handlers, logger.propagate) == (handlers, propagate)
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert model.training


def test_square_alone_is_flagged_over_all_images_only():
    assert square_flag(["clean", "square", None] + ["apgd-ce"] * 497) is None
    assert "2 of 500" in str(square_flag(["square", "square", None] + ["apgd-ce"] * 497))


def test_two_classes_are_enough_for_attacks_without_dlr():
    images, labels = load_images(2, 20)
    config = AutoAttackConfig(version="custom", attacks=("apgd-ce", "fab-t"))
    verdict = attack_chunk(train_linear(images, labels, 2), images, labels, ThreatModel(radius=0.9), config=config)
    assert not verdict.robust.any()


def test_three_classes_are_refused():
    images, labels = load_images(3, 20)
    with pytest.raises(ValueError, match="at least 4 classes"):
        attack_chunk(train_linear(images, labels, 3), images, labels, THREAT, config=CONFIG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "custom"}, "attacks are none"),
        ({"version": "custom", "attacks": ("pgd",)}, "takes some of apgd-ce"),
        ({"version": "custom", "attacks": ("fab", "fab")}, "each once"),
        ({"attacks": ("apgd-ce",)}, "bring their own"),
        ({"images": 0}, "evaluation.images is 0"),
        ({"chunk": 0}, "evaluation.chunk is 0"),
        ({"batch": -1}, "evaluation.batch is -1"),
    ],
)
def test_a_senseless_evaluation_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoAttackConfig(**settings)


def test_an_unknown_version_is_refused():
    with unchecked_types(), pytest.raises(ValueError, match="allowed are standard, plus, rand, custom"):
        AutoAttackConfig(version="fast")  # pyright: ignore[reportArgumentType]
