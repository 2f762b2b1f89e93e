"""ResNet-18 in its form for 32x32 images: a 3x3 stem without max-pooling, normalisation inside.

Source: He et al., "Deep residual learning for image recognition", CVPR 2016; the CIFAR form and the names of
the weights are those of github.com/kuangliu/pytorch-cifar, models/resnet.py (11.17M parameters).
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from stages.nets.normalisation import Normalise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to the input (to its 1x1 projection where the shape changes)."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels_in != channels_out:
            self.shortcut.append(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels_out))

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch other smaller narrower"]:
        hidden = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(hidden)) + self.shortcut(features))


class ResNet18(nn.Module):
    """Images [batch, channel, height, width] in [0, 1], of any size, to logits [batch, class].

    ``width`` is the number of channels at full resolution: 64 in the paper, 8 or 16 for one CPU core.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        width: int = 64,
    ) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.normalise = Normalise(mean, std)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(before, after, stride=1 if level == 0 else 2)
            for level, (before, after) in enumerate(pairwise(widths))
        )
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        features = functional.relu(self.bn1(self.conv1(self.normalise(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.linear(features.mean((2, 3)))


def _stage(channels_in: int, channels_out: int, *, stride: int) -> nn.Sequential:
    """Two blocks, the first of which changes the resolution and the channels."""
    return nn.Sequential(
        BasicBlock(channels_in, channels_out, stride=stride), BasicBlock(channels_out, channels_out, stride=1)
    )
