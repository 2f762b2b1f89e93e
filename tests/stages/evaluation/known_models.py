"""Small models whose robust accuracy, or whose fault, is known."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

Digits = tuple[Tensor, Tensor]


def load_images(classes: int, count: int) -> Digits:
    """The first uint8 digits [image, 1, 8, 8] of the given number of classes, and their labels."""
    data, target = map(np.asarray, load_digits(n_class=classes, return_X_y=True))
    pixels = np.round(255 * data / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    return torch.from_numpy(pixels)[:count], torch.from_numpy(target).long()[:count]


def train_linear(images: Tensor, labels: Tensor, classes: int) -> nn.Sequential:
    """A softmax regression from zero weights, with nothing random in it."""
    linear = nn.Linear(images[0].numel(), classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    model = nn.Sequential(nn.Flatten(), linear)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        loss = functional.cross_entropy(model(images / 255), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.eval()


def linear_layer(model: nn.Sequential) -> nn.Linear:
    """The one layer of `train_linear` that has weights."""
    (layer,) = (part for part in model if isinstance(part, nn.Linear))
    return layer


def largest_margins(model: nn.Sequential, images: Tensor, labels: Tensor, radius: float) -> Tensor:
    """The exact largest margin that an L-inf attack in [0, 1] reaches on a linear model, per image.

    A linear function is largest where every pixel is at its limit, on the side of its weight's sign.
    """
    linear, clean = linear_layer(model).double(), images.double().flatten(1) / 255
    low, high = (clean - radius).clamp(min=0), (clean + radius).clamp(max=1)
    weights = linear.weight.detach() - linear.weight.detach()[labels][:, None]
    bias = linear.bias.detach() - linear.bias.detach()[labels][:, None]
    margins = (torch.where(weights > 0, high[:, None], low[:, None]) * weights).sum(2) + bias
    linear.float()  # back to what the model is attacked in
    return margins.scatter(1, labels[:, None], -torch.inf).amax(1)


class Wrapped(nn.Module):
    """A model behind a change of its images or of its logits."""

    def __init__(self, model, *, before=lambda images: images, after=lambda logits: logits):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, images):
        return self.after(self.model(self.before(images)))


def quantised(model):
    """Rounding to 4 levels in front: no gradient anywhere, and no robustness from it."""
    return Wrapped(model, before=lambda images: (3 * images).round() / 3).eval()


def noisy(model):
    """Logits that change from call to call."""
    return Wrapped(model, after=lambda logits: logits + 0.5 * torch.randn_like(logits)).eval()


def scaled(model):
    """Logits x 10,000, which saturate the softmax in float32."""
    return Wrapped(model, after=lambda logits: 1e4 * logits).eval()


class GradientInside(nn.Module):
    """A model that follows its own gradient before it answers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        with torch.enable_grad():
            leaf = images.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.model(leaf).amax(1).sum(), leaf)
        return self.model(images + 0.01 * gradient.sign())
