"""The model contract: what can be attacked passes, and an accuracy is refused only where the sample can tell."""

import numpy as np
import pytest
import torch
from checked_models import IMAGES, LABELS, MODEL, THREAT, before, check
from known_models import GradientInside, load_images, quantised, scaled, train_linear
from scipy.stats import binom
from torch import Tensor, nn

from stages.evaluation.contract import check_model, is_better, is_chance


class Precise(nn.Module):
    """The model in another precision, to which it converts its images."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = train_linear(IMAGES, LABELS, 10).to(dtype), dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.dtype))


class Autocast(nn.Module):
    """The model under autocast in its forward."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return MODEL(images)


class Strict(nn.Module):
    """A model that refuses pixels outside of its range."""

    def forward(self, images: Tensor) -> Tensor:
        assert 0 <= images.min() <= images.max() <= 1
        return MODEL(images)


class Coarse(nn.Module):
    """A model whose kernels for one image round otherwise than those for many, as TF32's and bfloat16's do."""

    def forward(self, images: Tensor) -> Tensor:
        return MODEL(images) * (1 + 2**-6 * (len(images) == 1))


class Branching(nn.Module):
    """A model whose control flow depends on each image."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([MODEL(image if image.mean() > 0.2 else 2 * image) for image in images.split(1)])


SOUND = {
    "linear": lambda: MODEL,
    "bfloat16": lambda: Precise(torch.bfloat16).eval(),
    "float16": lambda: Precise(torch.float16).eval(),
    "float64": lambda: Precise(torch.float64).eval(),
    "autocast": lambda: Autocast().eval(),
    "refuses other pixels": lambda: Strict().eval(),
    "quantised: no slope anywhere": lambda: quantised(MODEL),
    "saturated": lambda: scaled(MODEL),
    "gradient inside": lambda: GradientInside(MODEL).eval(),
    "straight-through": lambda: before(lambda x: x + (x.mul(3).round().div(3) - x).detach()),
    "a safe root": lambda: before(lambda x: (x + 1e-6).sqrt()),
    "control flow": lambda: Branching().eval(),
    "compiled": lambda: torch.jit.trace(MODEL, torch.zeros(2, 1, 8, 8)),
    "scripted": lambda: torch.jit.script(train_linear(IMAGES, LABELS, 10)),
    "frozen": lambda: train_linear(IMAGES, LABELS, 10).requires_grad_(False),
    "clamps where an attack arrives": lambda: before(lambda x: x.clamp(0.05, 0.95)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", SOUND)
def test_a_model_that_can_be_judged_passes_and_stays_as_it_was(name: str):
    model = SOUND[name]()
    weights = [(weight.requires_grad, weight.detach().clone()) for weight in model.parameters()]
    check(model)
    assert [weight.requires_grad for weight in model.parameters()] == [tracked for tracked, _ in weights]
    assert all(torch.equal(now, kept) for now, (_, kept) in zip(model.parameters(), weights, strict=True))
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.is_grad_enabled()


def test_kernels_for_other_batches_are_no_randomness():
    check(Coarse().eval())


@pytest.mark.parametrize(("height", "width", "channels", "classes"), [(1, 1, 1, 2), (2, 3, 3, 1000), (8, 4, 2, 3)])
def test_images_and_classes_of_any_number_pass(height: int, width: int, channels: int, classes: int):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes)).eval()
        images = torch.randint(256, (5, channels, height, width), dtype=torch.uint8)
    labels = model(images.flatten(1) / 255).argmax(1)
    check_model(model, images, labels, classes=classes, threat=THREAT)


def rate(refused, draws: int = 400) -> float:
    """The share of draws in which something is refused."""
    return sum(refused() for _ in range(draws)) / draws


@pytest.mark.parametrize("images", [1, 2, 5, 19, 50, 100, 200])
@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.9, 0.99])
def test_a_sound_model_is_hardly_ever_refused_by_its_accuracy(images: int, accuracy: float):
    """On other inputs it is as good as on the images at best, and answers differ as much as they can."""
    draw = np.random.default_rng(images)

    def refused() -> bool:
        right, other = (torch.from_numpy(draw.random(images) < accuracy) for _ in range(2))
        return is_better(other, right) or is_chance(int(right.sum()), images, 10)

    assert rate(refused) <= 0.01


@pytest.mark.parametrize("images", [100, 200])
def test_a_model_that_loses_half_without_its_normalisation_is_refused(images: int):
    draw = np.random.default_rng(0)

    def refused() -> bool:
        right, other = (torch.from_numpy(draw.random(images) < share) for share in (0.45, 0.9))
        return is_better(other, right)

    assert rate(refused) >= 0.99


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("images", [1, 3, 20, 200])
def test_chance_is_only_called_so_where_the_sample_can_tell(images: int, classes: int):
    useful = 1 / classes + 0.2 * (1 - 1 / classes)
    refused = [right for right in range(images + 1) if is_chance(right, images, classes)]
    assert binom.pmf(refused, images, useful).sum() < 1e-3
    assert not is_chance(images, images, classes)
    if images == 200:
        assert is_chance(0, images, classes)
    if images < 4:
        assert not refused


def test_one_image_of_two_classes_is_never_chance():
    pair = load_images(2, 1)
    model = train_linear(*load_images(2, 100), 2)
    check_model(model, *pair, classes=2, threat=THREAT)
    check_model(model, pair[0], 1 - pair[1], classes=2, threat=THREAT)
