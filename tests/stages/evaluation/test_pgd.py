import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from known_models import (
    Digits,
    Wrapped,
    largest_margins,
    linear_layer,
    load_images,
    quantised,
    scaled,
    train_linear,
)
from torch import nn
from unchecked import unchecked_types

from stages.evaluation.accuracy import to_float
from stages.evaluation.pgd import PGDConfig, draw_starts, pgd, pgd_mask
from stages.rap.threat import ThreatModel

LINF = ThreatModel(norm="Linf", radius=0.15)
L2 = ThreatModel(norm="L2", radius=0.8)


@pytest.fixture(scope="module")
def digits():
    return load_images(10, 120)


@pytest.fixture(scope="module")
def model(digits: Digits):
    return train_linear(*digits, 10)


def attack(model, digits: Digits, threat, **settings):
    images, labels = digits
    config = PGDConfig(**settings)
    return pgd(model, to_float(images), labels, threat, config=config, rows=np.arange(len(images)))


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("loss", ["cross-entropy", "dlr", "margin"])
@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_adversaries_lie_in_the_ball_and_broken_means_misclassified(model, digits: Digits, threat, loss, random_start):
    images, labels = to_float(digits[0]), digits[1]
    adversaries, broken = attack(model, digits, threat, loss=loss, random_start=random_start)
    difference = (adversaries - images).flatten(1).double()
    assert difference.norm(p=np.inf if threat.norm == "Linf" else 2, dim=1).max() <= threat.radius + 1e-6
    assert 0 <= adversaries.min() <= adversaries.max() <= 1
    assert torch.equal(broken, model(adversaries).argmax(1) != labels)
    assert 20 < broken.sum() < 115


@pytest.mark.parametrize("loss", ["cross-entropy", "margin", "targeted margin"])
def test_linf_accuracy_on_a_linear_model_of_two_classes_is_the_exact_one(loss):
    images, labels = load_images(2, 200)
    model = train_linear(images, labels, 2)
    threat = ThreatModel(radius=0.2)
    exact = largest_margins(model, images, labels, threat.radius).numpy()
    assert np.abs(exact).min() > 1e-4
    assert 20 < (exact < 0).sum() < 180
    rows = np.arange(len(images))
    robust = pgd_mask(model, images, labels, threat, config=PGDConfig(loss=loss), rows=rows)
    assert np.array_equal(robust, exact < 0)


def test_l2_accuracy_on_a_linear_model_of_two_classes_is_the_exact_one_but_for_a_thin_shell():
    images, labels = load_images(2, 200)
    images = images // 4 + 96  # far from 0 and 255, so that the box does not bind
    model = train_linear(images, labels, 2)
    weights, bias = linear_layer(model).weight.detach(), linear_layer(model).bias.detach()
    towards = (weights[1] - weights[0]) * (1 - 2 * labels[:, None])
    margin = (to_float(images).flatten(1) * towards).sum(1) + (bias[1] - bias[0]) * (1 - 2 * labels)
    needed = (-margin / towards.norm(dim=1)).numpy()  # the length of the shortest perturbation that breaks
    threat = ThreatModel(norm="L2", radius=float(np.median(needed)))
    robust = pgd_mask(model, images, labels, threat, config=PGDConfig(), rows=np.arange(len(images)))
    assert robust[needed > threat.radius * 1.0001].all()
    assert not robust[needed < threat.radius * 0.97].any()  # 20 steps turn a random start to within 3 %
    assert (needed < threat.radius * 0.97).sum() > 50


@pytest.mark.parametrize("restarts", [1, 3])
def test_results_do_not_depend_on_which_images_and_restarts_are_attacked_together(model, digits: Digits, restarts: int):
    images, labels = to_float(digits[0]), digits[1]
    rows, config = np.arange(len(images)) + 1000, PGDConfig(steps=2, restarts=restarts)
    adversaries, broken = pgd(model, images, labels, LINF, config=config, rows=rows)
    for part in (slice(0, 50), slice(50, 120)):
        apart, fooled = pgd(model, images[part], labels[part], LINF, config=replace(config, batch=7), rows=rows[part])
        assert torch.equal(fooled, broken[part])
        torch.testing.assert_close(apart, adversaries[part])


def test_starts_are_keyed_by_seed_restart_and_row_and_fill_the_ball():
    clean = torch.full((400, 1, 2, 2), 0.5, dtype=torch.float64)
    rows = np.arange(400)
    start = draw_starts(clean, L2, rows=rows, restart=0, seed=0)
    length = (start - clean).flatten(1).norm(dim=1)
    assert length.max() <= L2.radius
    assert (length < L2.radius / 2).double().mean() == pytest.approx(1 / 16, abs=0.04)  # the share of volume
    again = draw_starts(clean[5:6], L2, rows=rows[5:6], restart=0, seed=0)
    assert torch.equal(again, start[5:6])
    for other in ({"restart": 1, "seed": 0}, {"restart": 0, "seed": 1}):
        assert not torch.equal(draw_starts(clean, L2, rows=rows, **other), start)


def test_a_second_restart_only_attacks_what_the_first_left(model, digits: Digits):
    first, broken = attack(model, digits, LINF, steps=2)
    second, broken_twice = attack(model, digits, LINF, steps=2, restarts=3)
    assert broken_twice.sum() > broken.sum()
    assert torch.equal(first[broken], second[broken])


def test_a_state_that_is_wrong_on_the_way_breaks_the_image():
    class Window(nn.Module):
        """Wrong only for a pixel in (0.55, 0.65), with a gradient that leads through and beyond."""

        def forward(self, images):
            pixel = images.flatten(1)[:, :1]
            lead = pixel - 1 + ((pixel > 0.55) & (pixel < 0.65))
            return torch.cat([torch.zeros_like(lead), lead], 1)

    image, label = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    config = PGDConfig(steps=3, step_size=0.1, random_start=False)
    threat = ThreatModel(radius=0.3)
    adversaries, broken = pgd(Window(), image, label, threat, config=config, rows=np.arange(1))
    assert broken.all()
    assert adversaries.item() == pytest.approx(0.6)


def test_an_image_that_is_misclassified_as_it_is_is_broken_and_stays(model, digits: Digits):
    adversaries, broken = attack(model, (digits[0], (digits[1] + 1) % 10), LINF)
    assert broken[:9].all()
    assert torch.equal(adversaries[broken][:9], to_float(digits[0])[broken][:9])


def test_the_model_is_left_as_it_was(digits: Digits):
    model = train_linear(*digits, 10)
    model.insert(1, nn.Dropout(0.5))
    model.train()
    attack(model, digits, LINF, steps=2)
    assert all(part.training for part in model.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_dropout_is_off_during_the_attack(digits: Digits):
    model = train_linear(*digits, 10)
    expected = attack(model, digits, LINF, steps=2)[1]
    model.insert(1, nn.Dropout(0.9))
    assert torch.equal(attack(model.train(), digits, LINF, steps=2)[1], expected)


def test_foolbox_does_not_break_more(model, digits: Digits):
    with warnings.catch_warnings():  # foolbox imports a module of SciPy by its old name
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
    images, labels = digits
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=20, random_start=False)
    wrapped = foolbox.PyTorchModel(model, (0, 1), device="cpu")  # pyright: ignore[reportPrivateImportUsage]
    _, _, success = theirs(wrapped, to_float(images), labels, epsilons=LINF.radius)
    settings = {"steps": 20, "step_size": 0.01, "random_start": False, "loss": "cross-entropy"}
    _, broken = attack(model, digits, LINF, **settings)
    assert broken.sum() >= success.sum() > 20
    assert bool((broken | ~success).all())


def test_the_margin_sees_through_saturated_logits_where_cross_entropy_stalls(model, digits: Digits):
    expected = attack(model, digits, LINF, loss="margin")[1]
    assert torch.equal(attack(scaled(model), digits, LINF, loss="margin")[1], expected)
    stalled = attack(scaled(model), digits, LINF, loss="cross-entropy", random_start=False)[1]
    assert stalled.sum() < expected.sum()


def test_each_restart_of_a_targeted_attack_aims_at_the_next_likeliest_class(model, digits: Digits):
    """So nine of them reach what ten classes hold: the exact worst case of a linear model."""
    rows, exact = np.arange(len(digits[0])), largest_margins(model, *digits, LINF.radius).numpy()
    assert np.abs(exact).min() > 1e-4
    robust = {
        count: pgd_mask(model, *digits, LINF, config=PGDConfig(loss="targeted margin", restarts=count), rows=rows)
        for count in (1, 9)
    }
    assert np.array_equal(robust[9], exact < 0)
    assert robust[9].sum() < robust[1].sum()


def test_a_falling_step_goes_from_the_radius_to_nothing():
    config = PGDConfig(steps=4, falling=True)
    assert [config.step(LINF, number) / LINF.radius for number in range(4)] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_a_zero_gradient_does_not_move(model, digits: Digits, threat):
    adversaries, broken = attack(quantised(model), digits, threat, random_start=False)
    assert torch.equal(adversaries[~broken], to_float(digits[0])[~broken])


def test_a_gradient_whose_squares_underflow_still_points_somewhere(model, digits: Digits):
    faint = Wrapped(model, after=lambda logits: 1e-24 * logits)
    expected = attack(model, digits, L2, loss="margin")[1]
    assert torch.equal(attack(faint, digits, L2, loss="margin")[1], expected)


def test_an_answer_of_nan_is_wrong_and_a_gradient_of_nan_leads_nowhere(model, digits: Digits):
    """A part of the ball without an answer is found; one without a gradient ends nothing."""
    silent = Wrapped(model, after=lambda logits: logits.where(logits.amax(1, keepdim=True) > 3, torch.nan)).eval()
    adversaries, broken = attack(silent, digits, LINF)
    assert bool((broken >= attack(model, digits, LINF)[1]).all())
    assert bool(adversaries.isfinite().all())
    rooted = Wrapped(model, before=lambda images: images.sqrt()).eval()  # of an infinite slope at black
    adversaries, broken = attack(rooted, digits, LINF)
    assert 20 < broken.sum() < len(broken)
    assert bool(adversaries.isfinite().all())
    assert bool((rooted(adversaries[broken]).argmax(1) != digits[1][broken]).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "pgd.steps is 0"),
        ({"restarts": 0}, "pgd.restarts is 0"),
        ({"batch": 0}, "pgd.batch is 0"),
        ({"step_size": -0.1}, "pgd.step_size is -0.1"),
        ({"restarts": 2, "random_start": False}, "without random starts"),
    ],
)
def test_a_senseless_attack_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PGDConfig(**settings)


def test_an_unknown_loss_is_refused():
    with unchecked_types(), pytest.raises(ValueError, match="allowed are cross-entropy, dlr, margin"):
        PGDConfig(loss="hinge")  # pyright: ignore[reportArgumentType]
