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
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.square import SquareAttack
from torch import nn
from unchecked import unchecked_types

from stages.evaluation import lineup as lineup_module
from stages.evaluation.accuracy import to_float
from stages.evaluation.autoattack import AutoAttackConfig, attack_chunk, square_flag
from stages.evaluation.verdict import AttackError
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


def test_an_image_that_is_misclassified_as_it_is_counts_as_broken_and_is_not_attacked(model, digits: Digits):
    images, labels = digits
    verdict = attack_chunk(model, images[:3], (labels[:3] + 1) % CLASSES, THREAT, config=CONFIG)
    assert verdict.broken_by == ("clean",) * 3
    assert verdict.seconds == {}
    assert not verdict.clean.any()
    assert np.array_equal(verdict.adversarial, to_float(images[:3]).numpy())


@pytest.mark.parametrize(("norm", "radius", "attacks"), [("L2", 1.5, ()), ("L1", 6.0, ("apgd-ce",))])
def test_adversaries_in_other_norms_are_those_of_the_official_code(model, digits: Digits, norm, radius, attacks):
    threat = ThreatModel(norm=norm, radius=radius)
    config = AutoAttackConfig(version="custom" if attacks else "standard", attacks=attacks, batch=7)
    verdict = attack_chunk(model, *digits, threat, config=config)
    official = AutoAttack(model, norm=norm, eps=radius, seed=0, version="standard")
    official.attacks_to_run = list(attacks) or official.attacks_to_run
    official.apgd_targeted.n_target_classes = official.fab.n_target_classes = CLASSES - 1
    _, predicted = official.run_standard_evaluation(to_float(digits[0]), digits[1], batch_size=7)
    assert np.array_equal(verdict.robust, (predicted == digits[1]).numpy())
    assert radius - 0.1 < verdict.distance.max() <= radius + 1e-5
    assert verdict.refused == {}


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


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps of everything, for what does not depend on how many there are."""
    official = lineup_module.AutoAttack

    def short(*given, **settings):
        made = official(*given, **settings)
        for attack in (made.apgd, made.apgd_targeted):
            attack.n_iter = attack.n_iter_orig = 20
        made.fab.n_iter, made.square.n_queries = 5, 20
        return made

    monkeypatch.setattr(lineup_module, "AutoAttack", short)


@pytest.mark.usefixtures("shortened")
@pytest.mark.parametrize(
    ("classes", "attacks"),
    [
        (2, ["apgd-ce", "fab", "square"]),
        (3, ["apgd-ce", "apgd-dlr", "fab-t", "square"]),
        (4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
    ],
)
def test_few_classes_get_the_attacks_that_are_defined_on_them(classes: int, attacks: list[str]):
    """On a linear model of two classes the result is known exactly."""
    images, labels = load_images(classes, 12)
    linear, threat = train_linear(*load_images(classes, 200), classes), ThreatModel(radius=0.2)
    verdict = attack_chunk(linear, images, labels, threat, config=CONFIG)
    exact = largest_margins(linear, images, labels, threat.radius).numpy() < 0
    assert np.array_equal(verdict.robust, exact)
    assert exact.any()
    assert list(verdict.seconds) == attacks
    assert verdict.flags == ()


@pytest.mark.usefixtures("shortened")
@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_sizes_on_which_square_fails_are_attacked_without_it_and_flagged(norm):
    images = torch.randint(256, (3, 1, 4, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).eval()
    labels = model(to_float(images)).argmax(1)
    verdict = attack_chunk(model, images, labels, ThreatModel(norm=norm, radius=1e-4), config=CONFIG)
    assert list(verdict.seconds) == ["apgd-ce", "apgd-dlr", "fab-t"]
    assert "Square did not run: its official code fails on images of 4 x 8" in verdict.flags[0]


@pytest.mark.usefixtures("shortened")
def test_what_an_attack_claims_and_does_not_hold_is_left_to_the_next_one(
    model, digits: Digits, monkeypatch: pytest.MonkeyPatch
):
    """The official code believes the model's answer to whatever comes back: here, images of NaN and beyond the ball."""
    found = attack_chunk(model, *digits, ThreatModel(radius=0.5), config=CONFIG)
    assert found.broken_by.count("apgd-ce") > 6
    official = APGDAttack.perturb

    def spoilt(self, images, labels):
        made = official(self, images, labels)
        made[::2] = torch.nan
        made[1::4] = images[1::4] + 0.6
        return made

    monkeypatch.setattr(APGDAttack, "perturb", spoilt)
    left = attack_chunk(model, *digits, ThreatModel(radius=0.5), config=CONFIG)
    assert np.array_equal(left.robust, found.robust)
    assert left.refused["apgd-ce"] >= 6
    assert left.broken_by.count("apgd-t") >= left.refused["apgd-ce"]
    assert np.isfinite(left.adversarial).all()
    assert left.distance.max() <= 0.5 + 1e-6


def test_gradients_that_are_not_finite_do_not_end_an_attack(model):
    """A root has an infinite slope at black, of which the official code makes images of NaN, and calls them broken."""
    (images, labels), config = load_images(CLASSES, 24), AutoAttackConfig(version="custom", attacks=("apgd-ce",))
    threat = ThreatModel(norm="L2", radius=0.4)
    rooted = Wrapped(model, before=lambda images: images.clamp(0, 1).pow(0.5)).eval()
    nearly = Wrapped(model, before=lambda images: (images.clamp(0, 1) + 1e-6).sqrt()).eval()
    verdict, smooth = (attack_chunk(each, images, labels, threat, config=config) for each in (rooted, nearly))
    assert 0 < verdict.robust.sum() <= smooth.robust.sum() < smooth.clean.sum()
    assert any("gradients were NaN or infinite" in flag for flag in verdict.flags)
    assert smooth.flags == ()
    wrong = rooted(torch.from_numpy(verdict.adversarial)).argmax(1) != labels
    assert np.array_equal(wrong.numpy(), ~verdict.robust)


@pytest.mark.usefixtures("shortened")
def test_an_attack_that_fails_is_named_and_what_came_before_it_is_kept(
    model, digits: Digits, monkeypatch: pytest.MonkeyPatch
):
    whole, kept = attack_chunk(model, *digits, THREAT, config=CONFIG), {}
    with monkeypatch.context() as failing:
        failing.setattr(SquareAttack, "perturb", lambda *given: 1 / 0)
        with pytest.raises(AttackError, match=r"square failed on images of shape \[1, 8, 8\] in Linf: Zero") as end:
            attack_chunk(model, *digits, THREAT, config=CONFIG, kept=kept)
    assert "found is kept" in str(end.value)
    assert [each[-1] for each in kept] == ["apgd-ce", "apgd-t", "fab-t"]
    monkeypatch.setattr(APGDAttack, "perturb", lambda *given: pytest.fail("what is there is not attacked again"))
    resumed = attack_chunk(model, *digits, THREAT, config=CONFIG, kept=kept)
    assert (resumed.broken_by, resumed.flags) == (whole.broken_by, whole.flags)
    assert np.array_equal(resumed.adversarial, whole.adversarial)


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
