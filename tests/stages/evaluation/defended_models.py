"""Digit classifiers with one fault each, or none, on which the checks are proven."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from known_models import Digits, Wrapped, linear_layer, load_images, quantised, scaled
from torch import Tensor, nn
from torch.nn import functional

from stages.evaluation.pgd import PGDConfig
from stages.rap.norms import project, step
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel

THREAT = ThreatModel(norm="Linf", radius=0.2)
TRAINED = 1500  # the first digits train, the others test


@cache
def unseen_digits(count: int) -> Digits:
    images, labels = load_images(10, 1797)
    return images[TRAINED : TRAINED + count], labels[TRAINED : TRAINED + count]


def small_cnn() -> nn.Sequential:
    """A network of ReLUs and convolutions, in which nothing masks a gradient."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@cache
def train_cnn(seed: int, *, epochs: int, attack_steps: int = 0) -> nn.Module:
    """A CNN trained on digits, against PGD where it has steps (Madry et al. 2018)."""
    images, labels = load_images(10, TRAINED)
    images = images.float() / 255
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = small_cnn()
        optimiser = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(epochs):
            for chosen in torch.randperm(TRAINED).split(100):
                batch, target = images[chosen], labels[chosen]
                if attack_steps:
                    batch = _attacked(model, batch, target, attack_steps)
                loss = functional.cross_entropy(model(batch), target)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def _attacked(model: nn.Module, clean: Tensor, labels: Tensor, steps: int) -> Tensor:
    state = project(clean + THREAT.radius * (2 * torch.rand_like(clean) - 1), clean, THREAT)
    for _ in range(steps):
        leaf = state.requires_grad_(True)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(leaf), labels), leaf)
        state = step(state.detach(), gradient, clean, THREAT, PGDConfig(steps=steps).step(THREAT))
    return state


class Contrast(nn.Module):
    """An "adapter" that stretches contrast so far that nearly every pixel lands outside of [0, 1]."""

    def forward(self, images, t):
        return 1000 * (images - 0.45) + 0.5


class Noisy(nn.Module):
    """A random layer in front."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images + 0.1 * torch.randn_like(images))


class SurerFirst(nn.Module):
    """A model that first makes itself surer of its answer, as test-time defences do.

    To whoever differentiates through it, the step that it takes is a constant, which it is not.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        with torch.enable_grad():
            leaf = images.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.model(leaf).log_softmax(1).amax(1).sum(), leaf)
        return self.model(images + 0.03 * gradient)


def undefended() -> nn.Module:
    return train_cnn(0, epochs=12)


def adversarially_trained() -> nn.Module:
    return train_cnn(0, epochs=12, attack_steps=5)


class Pair(NamedTuple):
    """Twos against fives, which a linear model separates by far, and of which everything is known exactly."""

    train: Digits
    test: Digits
    certified: nn.Sequential
    undefended: nn.Module


PAIR_THREAT = ThreatModel(norm="Linf", radius=0.3)


@cache
def pair() -> Pair:
    """A linear model trained on the exact worst case of each image, and a CNN trained on the images themselves."""
    images, labels = load_images(10, 1797)
    chosen = (labels == 2) | (labels == 5)
    images, labels = images[chosen], (labels[chosen] == 5).long()
    train, test = (images[:-64], labels[:-64]), (images[-64:], labels[-64:])
    clean, target = train[0].float() / 255, train[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        certified = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        for weight in certified.parameters():
            nn.init.zeros_(weight)
        _fit(certified, 200, 0.02, lambda: functional.softplus(_worst_margins(certified, clean, target)).mean())
        cnn = nn.Sequential(*list(small_cnn())[:-1], nn.Linear(64, 2))
        _fit(cnn, 60, 2e-3, lambda: functional.cross_entropy(cnn(clean), target))
    return Pair(train, test, certified.eval(), cnn.eval())


def _worst_margins(model: nn.Sequential, clean: Tensor, labels: Tensor) -> Tensor:
    """The largest margin in the ball, as `largest_margins` has it for evaluation, with gradients."""
    layer, sign = linear_layer(model), 2.0 * labels - 1
    weights = -(layer.weight[1] - layer.weight[0]) * sign[:, None]
    low, high = (clean - PAIR_THREAT.radius).clamp(min=0), (clean + PAIR_THREAT.radius).clamp(max=1)
    reached = torch.where(weights > 0, high.flatten(1), low.flatten(1)) * weights
    return reached.sum(1) - (layer.bias[1] - layer.bias[0]) * sign


def _fit(model: nn.Module, updates: int, rate: float, loss: Callable[[], Tensor]) -> None:
    optimiser = torch.optim.Adam(model.parameters(), rate)
    for _ in range(updates):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    optimiser.zero_grad()


KNOWN: dict[str, Callable[[], nn.Module]] = {
    "undefended": undefended,
    "random layer": lambda: Noisy(undefended()).eval(),
    "quantiser": lambda: quantised(undefended()),
    "logits x 10,000": lambda: scaled(undefended()),
    "hard clamp": lambda: RobustClassifier(
        Contrast(), undefended(), steps=10, threat=THREAT, straight_through=False
    ).eval(),
    "probabilities": lambda: Wrapped(undefended(), after=lambda logits: logits.softmax(1)).eval(),
    "gradients inside": lambda: SurerFirst(undefended()).eval(),
}
