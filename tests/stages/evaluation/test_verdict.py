"""What an attack returns counts only where it is an adversary: in the ball, in [0, 1], and misclassified."""

import numpy as np
import pytest
import torch
from known_models import Digits, Wrapped, load_images, train_linear
from torch import Tensor, nn

from stages.evaluation.accuracy import to_float
from stages.evaluation.attacks import NamedAttack, run_attack
from stages.evaluation.verdict import AttackError, distances, tolerance, verify
from stages.rap.threat import ThreatModel

LINF = ThreatModel(norm="Linf", radius=0.25)
CLASSES = 4


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_images(CLASSES, 12)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return train_linear(*load_images(CLASSES, 400), CLASSES)


class Always(nn.Module):
    """A model that answers one class, whatever it is shown."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.full((len(images),), self.answer), CLASSES).float()


RETURNED = {
    "the images as they are": (lambda clean: clean, True),
    "a rounding outside of the ball": (lambda clean: clean + (0.5 - clean).sign() * (0.25 + 5e-7), True),
    "a rounding below 0": (lambda clean: clean - (clean == 0) * 1e-9, True),
    "1e-5 outside of the ball": (lambda clean: clean + (0.5 - clean).sign() * (0.25 + 1e-5), False),
    "1e-5 below 0": (lambda clean: clean - (clean == 0) * 1e-5, False),
    "above 1": (lambda clean: clean + 0.2, False),
    "one pixel NaN": (lambda clean: clean.index_fill(3, torch.tensor([2]), torch.nan), False),
    "one pixel infinite": (lambda clean: clean.index_fill(3, torch.tensor([2]), torch.inf), False),
}


@pytest.mark.parametrize("case", RETURNED)
def test_what_is_not_in_the_ball_and_in_the_range_counts_for_nothing(digits: Digits, case: str) -> None:
    clean, wrong = to_float(digits[0]), (digits[1] + 1) % CLASSES
    change, counts = RETURNED[case]
    found = verify(Always(0), change(clean), clean, torch.where(digits[1] == 0, wrong, digits[1]), LINF, batch=5)
    assert np.array_equal(found.refused, ~found.broken)
    assert found.broken.all() == counts
    assert found.broken.any() == counts
    assert bool(((found.images >= 0) & (found.images <= 1)).all())
    allowed = LINF.radius + tolerance(LINF, clean[0].numel())
    assert distances(found.images, clean, "Linf").max() <= allowed


def test_an_image_that_the_model_still_classifies_correctly_is_no_adversary(digits: Digits) -> None:
    clean = to_float(digits[0])
    found = verify(Always(2), clean, clean, digits[1], LINF, batch=5)
    assert np.array_equal(found.broken, (digits[1] != 2).numpy())
    assert not found.refused.any()


def test_an_answer_of_nan_to_an_image_that_is_allowed_is_wrong(model: nn.Module, digits: Digits) -> None:
    clean = to_float(digits[0])
    silent = Wrapped(model, after=lambda logits: logits.index_fill(1, torch.tensor([1]), torch.nan)).eval()
    assert verify(silent, clean, clean, digits[1], LINF, batch=5).broken.all()


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_sums_are_rounded_in_proportion_to_the_radius(norm: str) -> None:
    clean = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    threat = ThreatModel(norm=norm, radius=25.0 if norm == "L2" else 2000.0)  # pyright: ignore[reportArgumentType]
    length = noise.double().flatten(1).norm(p=2 if norm == "L2" else 1, dim=1).float()[:, None, None, None]
    at_the_edge = clean + noise * (threat.radius / length)
    inside = verify(Always(0), at_the_edge.clamp(0, 1), clean, torch.ones(4).long(), threat, batch=4)
    assert not inside.refused.any()
    beyond = clean + noise * (threat.radius * 1.0001 / length)
    assert verify(Always(0), beyond, clean, torch.ones(4).long(), threat, batch=4).refused.all()


def test_a_model_is_asked_in_the_batches_in_which_it_was_attacked(model: nn.Module, digits: Digits) -> None:
    """The last bits of a sum depend on the batch, and an adversary may hang on them."""
    sizes: list[int] = []
    heard = Wrapped(model, before=lambda images: sizes.append(len(images)) or images).eval()
    clean = to_float(digits[0])
    verify(heard, clean, clean, digits[1], LINF, batch=5)
    assert sizes == [5, 5, 2]


def test_an_attack_that_works_in_place_does_not_move_the_centre_of_the_ball(model: nn.Module, digits: Digits) -> None:
    def overwrite(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        labels.add_(1)
        return images.fill_(0.5)

    found = run_attack(NamedAttack("overwrite", overwrite), model, *digits, LINF, batch=4)
    assert found.refused == found.clean.sum() > 6
    assert np.array_equal(found.robust, found.clean)


def identity(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    return images


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, "gradient", "transposed"])
def test_floats_of_any_kind_are_taken_as_they_are(model: nn.Module, digits: Digits, kind: torch.dtype | str) -> None:
    def attack(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        leaf = images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), labels), leaf)
        step = (images + 0.2 * gradient.sign()).clamp(0, 1).detach()
        if kind == "gradient":
            return step.requires_grad_(True) * 1
        if kind == "transposed":
            return step.transpose(2, 3).contiguous().transpose(2, 3)
        return step.to(kind)  # pyright: ignore[reportArgumentType]

    found = run_attack(NamedAttack("step", attack), model, *digits, LINF)
    assert found.refused == 0
    assert found.adversarial.dtype == np.float32
    assert not np.array_equal(found.robust, found.clean)


NO_IMAGES = {
    "nothing": (lambda images: None, "a NoneType"),
    "a pair": (lambda images: (images, images), "a tuple"),
    "a list": (lambda images: list(images), "a list"),
    "an array": (lambda images: images.numpy(), "a ndarray"),
    "bytes": (lambda images: (255 * images).byte(), r"uint8 of shape \[4, 1, 8, 8\]"),
    "booleans": (lambda images: images > 0, "bool of shape"),
    "flat images": (lambda images: images.flatten(1), r"float32 of shape \[4, 64\]"),
    "fewer images": (lambda images: images[:-1], r"float32 of shape \[3, 1, 8, 8\]"),
    "another order of axes": (lambda images: images.permute(0, 2, 3, 1), r"float32 of shape \[4, 8, 8, 1\]"),
    "logits": (lambda images: images.flatten(1)[:, :4], r"float32 of shape \[4, 4\]"),
}


@pytest.mark.parametrize("case", NO_IMAGES)
def test_anything_but_images_is_refused_with_what_it_was(model: nn.Module, digits: Digits, case: str) -> None:
    change, message = NO_IMAGES[case]
    with pytest.raises(AttackError, match=f"attack mine returned {message}.*expected a dense tensor of floats"):
        run_attack(NamedAttack("mine", lambda *given: change(given[1])), model, *digits, LINF, batch=4)
