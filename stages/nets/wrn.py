"""Wide residual networks for 32x32 images, with their normalisation inside; WRN-28-10 by default.

Source: Zagoruyko & Komodakis, "Wide residual networks", BMVC 2016. Structure and names of the weights are those
of github.com/xternalz/WideResNet-pytorch, wideresnet.py, which RobustBench uses too (WRN-28-10: 36.48M parameters).
"""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from stages.nets.normalisation import Normalise


class WideBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice; added to the input, or to its projection after the first ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        changes = stride > 1 or channels_in != channels_out
        self.convShortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if changes else None

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch other smaller narrower"]:
        active = functional.relu(self.bn1(features))
        hidden = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return hidden + (features if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """Blocks at one resolution; the first one changes the resolution and the channels."""

    def __init__(self, channels_in: int, channels_out: int, *, blocks: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(channels_in, channels_out, stride=stride)
        rest = [WideBlock(channels_out, channels_out, stride=1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(first, *rest)

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch other smaller narrower"]:
        return self.layer(features)


class WideResNet(nn.Module):
    """Images [batch, channel, height, width] in [0, 1], of any size, to logits [batch, class].

    ``depth`` counts the convolutions (6 n + 4), ``widen`` multiplies the channels 16, 32, 64.
    Raises ValueError for a depth that is not 6 n + 4.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        depth: int = 28,
        widen: int = 10,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"the depth of a WideResNet is {depth}; it must be 6 n + 4: 10, 16, 22, 28, ...")
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.normalise = Normalise(mean, std)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1, self.block2, self.block3 = (
            WideStage(before, after, blocks=blocks, stride=1 if level == 0 else 2)
            for level, (before, after) in enumerate(pairwise(widths))
        )
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], classes)
        self.apply(_initialise)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        features = self.block3(self.block2(self.block1(self.conv1(self.normalise(images)))))
        return self.fc(functional.relu(self.bn1(features)).mean((2, 3)))


def _initialise(module: nn.Module) -> None:
    """He initialisation by fan-out, as in the source: 28 layers deep, the default one starts too small."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
