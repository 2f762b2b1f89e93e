"""The MNIST CNN of the PyTorch examples, for images of any size, with its normalisation inside.

Source: github.com/pytorch/examples, mnist/main.py: two 3x3 convolutions (32, 64), max-pooling, dropout,
128 hidden units. Differs: logits instead of log-probabilities.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from stages.nets.normalisation import Normalise


class CNN(nn.Module):
    """Images [batch, channel, height, width] in [0, 1] to logits [batch, class].

    Raises ValueError for images smaller than 6x6, of which nothing is left after two convolutions and a pooling.
    """

    def __init__(
        self,
        channels: int,
        size: int | tuple[int, int],
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 6:
            raise ValueError(f"the images are {height}x{width}; the CNN needs 6x6 at least: use another classifier")
        self.normalise = Normalise(mean, std)
        self.conv1 = nn.Conv2d(channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128)
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, classes)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        features = functional.relu(self.conv1(self.normalise(images)))
        # the same with ReLU and pooling the other way round, of four times as many features
        features = functional.relu(functional.max_pool2d(self.conv2(features), 2))
        hidden = functional.relu(self.fc1(self.dropout1(features).flatten(1)))
        return self.fc2(self.dropout2(hidden))
