"""The MNIST CNN of the PyTorch examples, for images of any size, with its normalisation inside.

Source: github.com/pytorch/examples, mnist/main.py: two 3x3 convolutions (32, 64), max-pooling, dropout,
128 hidden units. Differs: logits instead of log-probabilities.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class CNN(nn.Module):
    """Images [batch, channel, height, width] in [0, 1] to logits [batch, class]."""

    def __init__(
        self, channels: int, size: int, classes: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.conv1 = nn.Conv2d(channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * ((size - 4) // 2) ** 2, 128)
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, classes)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch klass"]:
        features = functional.relu(self.conv1((images - self.mean) / self.std))
        features = functional.max_pool2d(functional.relu(self.conv2(features)), 2)
        hidden = functional.relu(self.fc1(self.dropout1(features).flatten(1)))
        return self.fc2(self.dropout2(hidden))
