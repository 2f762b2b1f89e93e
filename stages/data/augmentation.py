"""Random crop and horizontal flip, the usual augmentation of CIFAR-10, as numbers that can be stored.

The parameters of an image are keyed by its row in the data set, never by its place in a batch.

>>> draw_augmentation(np.array([7, 8]), 0, "example").tolist()
[[1, 4, 1], [6, 5, 1]]
"""

import numpy as np
import torch
from jaxtyping import Bool, Int16, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from stages.randomness import key_seed, splitmix64

PADDING = 4  # pixels of zeros around the image, as in the ResNet paper (He et al. 2016)


def draw_augmentation(rows: Int64[np.ndarray, " image"], *key: int | str) -> Int16[np.ndarray, "image 3"]:
    """For each row (dy, dx, flip): the corner of the crop in 0 .. 8, and whether to flip, 0 or 1."""
    with np.errstate(over="ignore"):
        streams = splitmix64(np.uint64(key_seed("augmentation", *key)) + rows.astype(np.uint64))
        words = splitmix64(streams[:, None] + np.arange(3, dtype=np.uint64))
    return (words % np.array([2 * PADDING + 1, 2 * PADDING + 1, 2], np.uint64)).astype(np.int16)


def augment(
    images: UInt8[Tensor, "image channel height width"], parameters: Int16[Tensor, "image 3"]
) -> UInt8[Tensor, "image channel height width"]:
    """The images padded with zeros, cropped to their size at (dy, dx), then mirrored where flip is 1.

    (4, 4, 0) leaves an image as it is. Raises ValueError for parameters out of range, where they lie on the CPU: the
    answer of a GPU would have to be waited for.
    """
    limits = torch.tensor([2 * PADDING, 2 * PADDING, 1])
    if parameters.device.type == "cpu" and ((parameters < 0) | (parameters > limits)).any():
        raise ValueError(f"augmentation parameters (dy, dx, flip) must lie in 0 .. {limits.tolist()}")
    count, channels, height, width = images.shape
    down, right, flip = parameters.long().unbind(1)
    across = torch.arange(width, device=images.device).expand(count, width)
    columns = right[:, None] + torch.where(flip[:, None] == 1, width - 1 - across, across)
    lines = down[:, None] + torch.arange(height, device=images.device)
    pixels = (lines[:, :, None] * (width + 2 * PADDING) + columns[:, None, :]).reshape(count, 1, height * width)
    padded = functional.pad(images, (PADDING,) * 4).flatten(2)
    return padded.gather(2, pixels.expand(-1, channels, -1)).reshape(images.shape)


def carry(
    values: Int16[Tensor, "image channel height width"],
    before: Int16[Tensor, "image 3"],
    after: Int16[Tensor, "image 3"],
) -> tuple[Int16[Tensor, "image channel height width"], Bool[Tensor, "image 1 height width"]]:
    """Values that belong to the pixels of images augmented one way, moved to where another way puts those pixels.

    Also says where that is: False where the border opens on pixels that the first way had cut off.
    """
    count, channels, height, width = values.shape
    (down, right, flip), (later_down, later_right, later_flip) = before.long().unbind(1), after.long().unbind(1)
    across, lines = torch.arange(width).expand(count, width), torch.arange(height)
    columns = torch.where(later_flip[:, None] == 1, width - 1 - across, across) + (later_right - right)[:, None]
    lines = lines + (later_down - down)[:, None]
    inside = ((lines >= 0) & (lines < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns).clamp(0, width - 1)
    pixels = (lines.clamp(0, height - 1)[:, :, None] * width + columns[:, None, :]).reshape(count, 1, height * width)
    moved = values.flatten(2).gather(2, pixels.expand(-1, channels, -1)).reshape(values.shape)
    return moved, inside[:, None]
