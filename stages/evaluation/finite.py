"""Gradients that are NaN or infinite, as of a square root at a black pixel: what an attack makes of them.

>>> finite(torch.tensor([[[[0.5, -2.0, torch.nan, -torch.inf]]]])).tolist()
[[[[0.5, -2.0, 0.0, -2.0]]]]
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def finite(gradient: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image channel height width"]:
    """The gradient with 0 for NaN, which leads nowhere, and for infinity its sign times the image's largest number.

    One such pixel would otherwise make the whole image NaN, and the attack would end there. Anything larger would
    outweigh all other pixels in L2, also where the range of pixels does not let that one move.
    """
    known = gradient.isfinite()
    if bool(known.all()):
        return gradient
    largest = torch.where(known, gradient, 0).flatten(1).abs().amax(1)[:, None, None, None]
    largest = largest.masked_fill(largest == 0, 1.0)  # of an image without any other
    return torch.where(known, gradient, gradient.nan_to_num(nan=0.0).sign() * largest)


class FiniteGradients(nn.Module):
    """A model whose gradients by its images are `finite`; all else is as it was, to the bit."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.met = False
        """Whether one of them was not."""

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        if images.requires_grad:
            images.register_hook(self._finite)
        return self.model(images)

    def _finite(self, gradient: Tensor) -> Tensor:
        made = finite(gradient)
        self.met |= made is not gradient
        return made
