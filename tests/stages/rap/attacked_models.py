"""Small models whose answers under attack are known, and images that try the corners of the lattice."""

import torch
from torch import Tensor, nn

from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel


class Net(nn.Module):
    """A classifier that looks at some pixels only: the others have no gradient."""

    def __init__(self, pixels: int = 64, *, blind: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(pixels, 24, generator=generator))
        self.second = nn.Parameter(torch.randn(24, 10, generator=generator) / 5)
        self.first.data[::blind] = 0

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.first).tanh() @ self.second


class Adapter(nn.Module):
    """An adapter whose answer depends on t; keeps what it was asked."""

    def __init__(self, *, scale: float = 0.9) -> None:
        super().__init__()
        self.scale = scale
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor, t: Tensor) -> Tensor:
        self.asked.append((images.detach().clone(), t.clone()))
        shift = torch.sin(t.float())[:, None, None, None] * torch.linspace(-1, 1, images.shape[-1])
        return self.scale * images + 0.05 * images**2 * shift

    def times(self) -> list[int]:
        """The t of each question, the same for all images of it."""
        assert all(len(t.unique()) == 1 for _, t in self.asked)
        return [int(t[0]) for _, t in self.asked]


def robust(*, steps: int = 6, blind: int = 5, **options: object) -> RobustClassifier:
    """The adapter before the classifier, for 8x8 images."""
    options = {"threat": ThreatModel(norm="Linf", radius=0.1), **options}
    return RobustClassifier(Adapter(), Net(blind=blind), steps=steps, **options).eval()  # pyright: ignore


def pictures(count: int = 8, *, seed: int = 0) -> Tensor:
    """Random 8x8 images; the first is black, the second white, the third both."""
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    images[0], images[1] = 0, 255
    images[2] = torch.where(images[2] > 127, 255, 0)
    return images
