import pytest
import torch
from known_models import Wrapped, quantised, scaled
from torch import nn
from torch.nn import functional

from stages.evaluation.checks.surrogates import LeakyBackward, Rescaled, StraightThrough, surrogates_of
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel

PARTS = {
    "clamp": lambda values: values.clamp(0, 1),
    "keyword clamp": lambda values: torch.clamp(input=values, min=0, max=1),
    "hardtanh": nn.Hardtanh(),
    "relu6": nn.ReLU6(inplace=True),
    "round": lambda values: (values * 3).round() / 3,
    "sign": torch.sign,
}


def network(part):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    return Wrapped(layers, before=lambda images: part(20 * images - 10))


def gradient(model, images):
    leaf = images.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    return found


@pytest.mark.parametrize("part", PARTS)
def test_a_straight_through_surrogate_answers_alike_and_has_a_gradient_everywhere(part):
    model, images = network(PARTS[part]), torch.rand(3, 1, 4, 4)
    assert torch.equal(StraightThrough(model)(images), model(images))
    assert bool((gradient(StraightThrough(model), images) != 0).all())
    assert bool((gradient(model, images) == 0).any())


@pytest.mark.parametrize("part", [nn.ReLU(), nn.ReLU(inplace=True), torch.relu, functional.relu])
def test_a_leaky_surrogate_answers_alike_and_has_a_gradient_below_zero(part):
    model, images = network(part), torch.rand(3, 1, 4, 4)
    assert torch.equal(LeakyBackward(model)(images), model(images))
    assert bool((gradient(LeakyBackward(model), images) != 0).all())
    assert bool((gradient(model, images) == 0).any())


def test_rescaled_logits_order_the_classes_alike_at_any_scale():
    model, images = network(nn.ReLU()), torch.rand(3, 1, 4, 4)
    assert torch.equal(Rescaled(model)(images).argmax(1), model(images).argmax(1))
    assert torch.allclose(Rescaled(scaled(model))(images), Rescaled(model)(images), atol=1e-5)


def test_only_surrogates_that_differ_are_made():
    images = torch.rand(2, 1, 4, 4)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    assert list(surrogates_of(linear, images)) == ["rescaled logits"]
    assert "straight-through clamps and rounding" in surrogates_of(quantised(linear), images)
    assert "leaky ReLU" in surrogates_of(network(nn.ReLU()), images)
    alone = RobustClassifier(None, linear, steps=1, threat=ThreatModel(radius=0.1))
    assert list(surrogates_of(alone, images)) == ["rescaled logits"]


def test_the_adapters_clamp_is_tried_both_ways():
    class Dark(nn.Module):
        def forward(self, images, t):
            return images - 2

    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    images = torch.rand(2, 1, 4, 4)
    for deployed in (True, False):
        model = RobustClassifier(Dark(), linear, steps=1, threat=ThreatModel(radius=0.1), straight_through=deployed)
        other = surrogates_of(model, images)["the adapter's clamp the other way"]
        assert bool((gradient(model, images) != 0).any()) is deployed
        assert bool((gradient(other, images) != 0).any()) is not deployed
        assert model.straight_through is deployed
