"""What an attack of one's own may do, and what it must not reach."""

import random
import sys
import threading

import numpy as np
import pytest
import torch
from known_models import Digits, load_images, train_linear
from torch import Tensor, nn

from stages.evaluation.attacks import NamedAttack, run_attack
from stages.evaluation.isolation import isolated, try_attack
from stages.evaluation.verdict import AttackError
from stages.rap.threat import ThreatModel

THREAT = ThreatModel(norm="Linf", radius=0.25)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_images(4, 12)


def fresh_model() -> nn.Module:
    model = train_linear(*load_images(4, 100), 4)
    model.append(nn.Dropout(0.5))
    return model.eval()


def spoil(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """Changes all that there is, and breaks nothing."""
    for weight in model.parameters():
        weight.requires_grad_(True)
        weight.data.zero_()
    model.train()
    model.register_forward_hook(lambda part, given, answer: -answer)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(torch.get_num_threads() + 1)
    return images.float()


def test_nothing_that_an_attack_changes_reaches_what_comes_after_it(digits: Digits) -> None:
    model, untouched = fresh_model(), fresh_model()
    threads = torch.get_num_threads()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(2), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    found = run_attack(NamedAttack("spoil", isolated("spoil", spoil)), model, *digits, THREAT, batch=5)
    assert np.array_equal(found.robust, found.clean)
    assert found.clean.sum() > 6
    drawn = torch.rand(2), np.random.rand(), random.random()
    assert torch.equal(drawn[0], expected[0])
    assert drawn[1:] == expected[1:]
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads
    assert not any(part.training for part in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(model(images), untouched(images))


def widen(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """Moves as far as it likes, and the border of the ball with it."""
    object.__setattr__(threat, "radius", 1.0)
    return 1 - images


def test_an_attack_does_not_move_the_border_of_the_ball(digits: Digits) -> None:
    found = run_attack(NamedAttack("widen", isolated("widen", widen)), fresh_model(), *digits, THREAT)
    assert found.refused == found.clean.sum() > 6
    assert np.array_equal(found.robust, found.clean)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_images_that_a_coarse_type_rounds_out_of_the_ball_are_refused_before_the_work(kind, digits: Digits) -> None:
    def edge(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        return (images + threat.radius).clamp(0, 1).to(kind)

    with pytest.raises(ValueError, match=r"returned b?float16, which rounds .* images out of the ball, .*tried on 2"):
        try_attack("edge", edge, fresh_model(), *digits, THREAT)
    try_attack("inside", lambda *given: given[1].to(kind), fresh_model(), *digits, THREAT)


def draw(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """A random corner of the ball, another one at each call."""
    noise = torch.from_numpy(np.random.rand(*images.shape)).float() + torch.rand_like(images) - 1
    return (images + threat.radius * noise.sign()).clamp(0, 1)


def test_an_attack_draws_the_same_numbers_for_the_same_images_whatever_came_before(digits: Digits) -> None:
    images, labels = digits
    model, attack = fresh_model(), isolated("draw", draw)
    whole = run_attack(NamedAttack("draw", attack), model, images, labels, ThreatModel(radius=0.5), batch=6)
    last = run_attack(NamedAttack("draw", attack), model, images[6:], labels[6:], ThreatModel(radius=0.5), batch=6)
    assert np.array_equal(whole.adversarial[6:], last.adversarial)
    assert not np.array_equal(whole.robust, whole.clean)


def follow(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    leaf = images.clone().requires_grad_(True)
    nn.functional.cross_entropy(model(leaf), labels).backward()
    assert leaf.grad is not None
    return images + threat.radius * leaf.grad.sign()


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_an_attack_has_gradients_wherever_it_is_called(digits: Digits, around: type) -> None:
    model = fresh_model()
    with around():
        try_attack("follow", follow, model, *digits, THREAT)
    assert all(weight.grad is None for weight in model.parameters())


FAILS = {
    "nothing": (lambda model, images, labels, threat: None, "returned a NoneType; expected a dense tensor of floats"),
    "bytes": (lambda model, images, labels, threat: (255 * images).byte(), r"returned uint8 of shape \[1, 1, 8, 8\]"),
    "a sparse tensor": (lambda model, images, labels, threat: images.to_sparse(), r"8\] as torch.sparse_coo; expected"),
    "an error": (lambda model, images, labels, threat: 1 / 0, "raised ZeroDivisionError on 1 images"),
    "no such attribute": (lambda model, images, labels, threat: images.nothing, "raised AttributeError"),
    "an exit": (lambda model, images, labels, threat: sys.exit(0), "raised SystemExit on 1 images"),
    "two images": (lambda model, images, labels, threat: images.reshape(1, 1, 8, 8), "raised RuntimeError on 2 images"),
    "a GPU": (lambda model, images, labels, threat: images.to("cuda:7"), "attack mine raised"),
}


@pytest.mark.parametrize("case", FAILS)
def test_an_attack_that_cannot_work_is_refused_by_two_images_before_the_work(digits: Digits, case: str) -> None:
    attack, message = FAILS[case]
    with pytest.raises(ValueError, match=message + ".*tried on 2 images before the work"):
        try_attack("mine", attack, fresh_model(), *digits, THREAT)


def test_an_attack_that_fails_later_is_named_with_its_error(digits: Digits) -> None:
    def few(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        if len(images) > 2:
            raise IndexError("two images at a time")
        return images

    model = fresh_model()
    try_attack("few", few, model, *digits, THREAT)
    with pytest.raises(AttackError, match=r"attack few raised IndexError on 12 images.*two images at a time"):
        run_attack(NamedAttack("few", isolated("few", few)), model, *digits, THREAT)


def test_a_model_that_cannot_be_copied_takes_no_attacks_of_ones_own(digits: Digits) -> None:
    model = fresh_model()
    vars(model)["lock"] = threading.Lock()
    with pytest.raises(ValueError, match="the model cannot be copied"):
        try_attack("follow", follow, model, *digits, THREAT)
