"""The normalisation of images that every network here carries inside.

A classifier whose callers must normalise is the classic error of robustness evaluations: the attack's radius
is then measured in the wrong units. So mean and standard deviation are part of the weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Normalise(nn.Module):
    """(images - mean) / std, channel by channel; both are in pixels of [0, 1] and saved with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(
                f"the normalisation has mean {mean} and std {std}; it needs one of each for every channel, "
                "with std above 0"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        return (images - self.mean) / self.std


def check_normalisation(network: nn.Module, name: str) -> None:
    """Raise ValueError, which begins with ``name``, where weights that were loaded hold a std that none can be."""
    for each in network.modules():
        if isinstance(each, Normalise) and not ((each.std > 0) & each.std.isfinite() & each.mean.isfinite()).all():
            raise ValueError(
                f"{name} holds normalise.mean {each.mean.flatten().tolist()} and normalise.std "
                f"{each.std.flatten().tolist()}; both must be finite, and std above 0, in pixels of [0, 1]: save the "
                "weights again"
            )
