import numpy as np
import pytest
import torch
from known_models import Wrapped, linear_layer, load_images, train_linear
from scipy.stats import binomtest
from torch import nn

from stages.data.splits import Split
from stages.evaluation.accuracy import Accuracy, NonFiniteLogits, clean_mask, evaluating, finite_logits, to_float
from stages.evaluation.autoattack import AutoAttackConfig
from stages.evaluation.bpda import BPDAConfig
from stages.evaluation.checks.all_checks import run_checks
from stages.evaluation.checks.examined import CheckSize, Examined
from stages.evaluation.classical import ClassicalConfig
from stages.evaluation.measurement import attack_images
from stages.evaluation.pgd import PGDConfig
from stages.rap.threat import ThreatModel


@pytest.mark.parametrize(("correct", "images"), [(375, 512), (0, 128), (128, 128), (1, 1), (69, 128)])
def test_the_interval_is_wilsons(correct, images):
    expected = binomtest(correct, images).proportion_ci(method="wilson")
    assert Accuracy(correct, images).interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_an_accuracy_reads_as_share_interval_and_sample_size():
    assert str(Accuracy(375, 512)) == "73.2 % [69.2, 76.9] of 512"
    assert Accuracy(1, 2).as_json() == {
        "correct": 1,
        "images": 2,
        "value": 0.5,
        "interval": pytest.approx([0.0945, 0.9055], abs=1e-4),
    }


def test_a_mask_is_counted():
    assert Accuracy.from_mask(np.array([True, False, True])) == Accuracy(2, 3)


@pytest.mark.parametrize(("correct", "images"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(correct, images):
    with pytest.raises(ValueError, match="is no accuracy"):
        Accuracy(correct, images)


def test_clean_mask_agrees_with_the_model_whatever_the_batch():
    images, labels = load_images(10, 100)
    model = train_linear(images, labels, 10)
    labels[::7] = (labels[::7] + 1) % 10
    expected = (model(to_float(images)).argmax(1) == labels).numpy()
    assert 0 < expected.sum() < 100
    for batch in (7, 256):
        assert np.array_equal(clean_mask(model, images, labels, batch=batch), expected)


def test_pixels_are_divided_as_in_training():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_float(levels), torch.from_numpy(np.arange(256, dtype=np.float32) / np.float32(255)))


def test_a_model_that_returns_nan_has_no_accuracy():
    images, labels = load_images(10, 5)
    model = train_linear(images, labels, 10)
    nn.init.constant_(linear_layer(model).bias, torch.nan)
    with pytest.raises(NonFiniteLogits, match="5 of 5 images"):
        clean_mask(model, images, labels)


def test_evaluating_restores_modes_and_gradients_also_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    model[0].eval()
    model[2].weight.requires_grad_(False)

    def fail_inside():
        with evaluating(model):
            assert not any(part.training for part in model.modules())
            assert not any(weight.requires_grad for weight in model.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert [part.training for part in model.modules()] == [True, False, True, True]
    assert [weight.requires_grad for weight in model.parameters()] == [True, True, False, True]


class Halved(nn.Module):
    """A model that computes in another precision, to which it converts its images."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model.to(dtype), dtype

    def forward(self, images):
        return self.model(images.to(self.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_precision_are_read_in_that_of_the_images(dtype):
    images, labels = load_images(10, 5)
    model = Halved(train_linear(images, labels, 10), dtype)
    with evaluating(model), evaluating(model):
        assert model(to_float(images)).dtype == torch.float32
        assert model(to_float(images).double()).dtype == torch.float64
        assert finite_logits(model, to_float(images)).dtype == torch.float32
    assert model(to_float(images)).dtype == dtype


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model_is_evaluated_too():
    images, labels = load_images(10, 5)
    model = torch.jit.script(train_linear(images, labels, 10))
    assert clean_mask(model, images, labels).all()


ATTACKS = {
    "AutoAttack": AutoAttackConfig(version="custom", attacks=("apgd-ce", "apgd-dlr", "fab")),
    "PGD": PGDConfig(steps=3, loss="dlr"),
    "foolbox": ClassicalConfig(method="deepfool"),
    "EOT": BPDAConfig(backward="full", steps=3),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_in_bfloat16_is_attacked_as_one_that_converts_its_logits_itself(name):
    images, labels = load_images(10, 40)
    model = Halved(train_linear(images, labels, 10), torch.bfloat16)
    threat, split = ThreatModel(radius=0.1), Split(images[:12].numpy(), labels[:12].numpy(), np.arange(12))
    found, expected = (
        attack_images(ATTACKS[name], each.eval(), split, threat)
        for each in (model, Wrapped(model, after=lambda logits: logits.float()))
    )
    assert 0 < found.robust.sum() < 12
    assert found.broken_by == expected.broken_by
    assert np.array_equal(found.adversarial, expected.adversarial)


def test_a_model_in_bfloat16_is_examined():
    images, labels = load_images(10, 40)
    model = Halved(train_linear(images, labels, 10), torch.bfloat16).eval()
    examined = Examined(
        model=model, images=images[:6], labels=labels[:6], rows=np.arange(6), threat=ThreatModel(radius=0.1)
    )
    size = CheckSize(images=6, steps=4, short_steps=2, queries=10, gradient_images=4, binarized=4, inner=8, samples=2)
    verdicts = {check.number: check.verdict for check in run_checks(examined, size).checks}
    assert verdicts[2] == "not applicable"  # whether its gradient is the derivative is seen in float64 only
    assert "fail" not in verdicts.values()
