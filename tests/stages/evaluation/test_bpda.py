import numpy as np
import pytest
import torch
from known_models import Digits, load_images, train_linear
from torch import nn

from stages.evaluation.attacks import NamedAttack, run_attack
from stages.evaluation.bpda import BPDAConfig, Surrogate, bpda_attack
from stages.evaluation.pgd import PGDConfig, pgd_mask
from stages.rap.threat import ThreatModel

THREAT = ThreatModel(norm="Linf", radius=0.14)


class Quantised(nn.Module):
    """A purifier without gradients in front of a classifier, and with noise if asked for."""

    def __init__(self, classifier, noise=0.0):
        super().__init__()
        self.classifier, self.noise = classifier, noise

    def purify(self, images):
        return ((15 * images).round() / 15 + self.noise * torch.randn_like(images)).clamp(0, 1)

    def classify(self, images):
        return self.classifier(images)

    def forward(self, images):
        return self.classify(self.purify(images))


@pytest.fixture(scope="module")
def digits():
    return load_images(4, 40)


@pytest.fixture(scope="module")
def linear():
    return train_linear(*load_images(4, 400), 4)


def attacked(model, digits: Digits, **settings):
    config, rows = BPDAConfig(steps=10, **settings), np.arange(len(digits[0]))
    return run_attack(NamedAttack(config.name, bpda_attack(config, rows), is_batched=True), model, *digits, THREAT)


def test_bpda_breaks_a_purifier_whose_own_gradient_is_zero(linear, digits: Digits):
    model = Quantised(linear).eval()
    identity = attacked(model, digits, samples=1)
    full = attacked(model, digits, samples=1, backward="full")
    undefended = attacked(linear, digits, samples=1, backward="full")
    assert full.robust.sum() == full.clean.sum()
    assert identity.robust.sum() <= undefended.robust.sum() + 4
    assert identity.refused == 0


def test_the_surrogate_answers_as_the_model_does_and_has_another_gradient(linear, digits: Digits):
    model, images = Quantised(linear).eval(), (digits[0] / 255).requires_grad_(True)
    surrogate = Surrogate(model, backward="identity", samples=3)
    assert torch.allclose(surrogate(images), model(images))
    (gradient,) = torch.autograd.grad(surrogate(images)[:, 0].sum(), images)
    assert torch.allclose(gradient[0].flatten(), linear[1].weight[0])


def test_eot_samples_average_the_noise_of_a_random_model(linear, digits: Digits):
    images = digits[0] / 255
    torch.manual_seed(0)
    answers = [Surrogate(Quantised(linear, 0.3).eval(), backward="identity", samples=n) for n in (1, 16)]
    spread = [torch.stack([model(images) for _ in range(8)]).std(0).mean().item() for model in answers]
    assert spread[1] < spread[0] / 2


def test_a_random_model_is_attacked_the_same_way_twice(linear, digits: Digits):
    model = Quantised(linear, 0.1).eval()
    attack = bpda_attack(BPDAConfig(steps=3, samples=2), np.arange(len(digits[0])))
    once, again = (attack(model, digits[0] / 255, digits[1], THREAT) for _ in range(2))
    assert torch.equal(once, again)


def test_the_full_gradient_of_a_deterministic_model_is_pgd(linear, digits: Digits):
    found = attacked(linear, digits, samples=2, backward="full", step_size=0.035)
    config = PGDConfig(steps=10, step_size=0.035, random_start=False)
    assert np.array_equal(found.robust, pgd_mask(linear, *digits, THREAT, config=config, rows=np.arange(40)))


def test_a_model_in_one_part_has_no_purifier_to_replace(linear, digits: Digits):
    with pytest.raises(ValueError, match="Sequential has no purify"):
        attacked(linear, digits)
    with pytest.raises(ValueError, match="samples is 0"):
        BPDAConfig(samples=0)
