"""What an adapter must be before anyone trains it: a map from images and t to images, through which gradients pass.

The contract of the classifier behind it is `stages.evaluation.contract`.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from stages import numerics

GRAPH = "its forward must not leave PyTorch's graph (detach, torch.no_grad, NumPy, rounding)"


def check_adapter(
    adapter: nn.Module, images: Float[Tensor, "image channel height width"], t: Int64[Tensor, " image"]
) -> None:
    """Passes an adapter in eval mode that makes finite images of some images and the number of their steps, the same
    ones again, which depend on the images and on weights by a gradient.

    Raises ValueError that says what was found and what to do. All its weights ask for gradients afterwards.
    """
    weights = [*adapter.requires_grad_(True).parameters()]
    given = images.clone().requires_grad_(True)
    with torch.enable_grad():
        restored = _restored(adapter, given, t)
    if not weights:
        raise ValueError("the adapter has no weights that could be trained")
    with torch.no_grad():
        again = _restored(adapter, images.clone(), t)
    difference = (restored - again).abs().max().item()
    if difference > numerics.SAME * restored.abs().max().item():
        raise ValueError(
            f"the adapter gives the same images other estimates each time, by up to {difference:g}, in eval mode: "
            "remove its randomness (functional dropout without training=self.training, added noise)"
        )
    if not restored.requires_grad:
        raise ValueError(f"the adapter's estimate has no gradient, and nothing could be trained: {GRAPH}")
    # of a sum that weighs all pixels, each otherwise, since normalisation would cancel their plain sum
    weighed = (restored * torch.linspace(-1, 2, restored.numel(), device=restored.device).view_as(restored)).sum()
    by_images, *by_weights = torch.autograd.grad(weighed, [given, *weights], allow_unused=True)
    if by_images is None:
        raise ValueError(f"the adapter's estimate has no gradient by the image, which attacks follow: {GRAPH}")
    if not any(each is not None and bool(each.any()) for each in by_weights):
        raise ValueError(
            f"the adapter's estimate depends on none of its weights by a gradient, so nothing could be trained: {GRAPH}"
        )
    if not all(each is None or bool(each.isfinite().all()) for each in (by_images, *by_weights)):
        raise ValueError("the gradients of the adapter's estimate are NaN or infinite: look for a root or a division")


def _restored(adapter: nn.Module, images: Tensor, t: Tensor) -> Float[Tensor, "image channel height width"]:
    """The adapter's estimate. Raises ValueError where it is none."""
    expected = f"it must take images {list(images.shape)} and t [{len(images)}], and return images of the same shape"
    try:
        restored = adapter(images, t)
    except torch.OutOfMemoryError:
        raise
    except (Exception, SystemExit) as error:  # whatever anybody's forward may raise
        raise ValueError(f"the adapter raised {type(error).__name__} ({error}); {expected}") from error
    if not isinstance(restored, Tensor) or restored.shape != images.shape:
        found = list(restored.shape) if isinstance(restored, Tensor) else f"a {type(restored).__name__}"
        raise ValueError(f"the adapter returned {found}; {expected}")
    if not restored.is_floating_point():
        raise ValueError(f"the adapter returned {restored.dtype}; {expected}, as floats")
    if not bool(torch.isfinite(restored).all()):
        raise ValueError("the adapter returned NaN or infinity for images in [0, 1]: look at its first weights")
    return restored
