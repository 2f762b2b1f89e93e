"""Images and labels as a user has them, to uint8 pixels and class numbers; or the reason why not.

>>> pixels_of(np.zeros((1, 1, 2, 2))).dtype
torch.uint8
>>> labels_of([0.0, 2.0], classes=3)
tensor([0, 2])
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

TOGETHER = 256  # images whose floats are widened at once


def pixels_of(images: object) -> UInt8[Tensor, "image channel height width"]:
    """The uint8 images of uint8 ones, or of floats in [0, 1] that were 8-bit images; on their device.

    Raises ValueError, with what to do, for another shape, type or range, and for floats between the 256 levels: the
    figures of attacks on 8-bit images would not be comparable, and their radius not in pixels.
    """
    values = _tensor(images, "images")
    _check_shape(values.shape)
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise ValueError(
            f"the images are {_name(values.dtype)}; expected uint8, or floats in [0, 1]: convert integers in 0..255 "
            "to uint8"
        )
    low, high = values.min().item(), values.max().item()  # NaN where one is
    if not math.isfinite(low) or not math.isfinite(high):
        spoilt = int((~torch.isfinite(values)).flatten(1).any(1).sum())
        raise ValueError(f"{spoilt} of {len(values)} images hold NaN or infinity; expected pixels in [0, 1]")
    if low < 0 or high > 1:
        raise ValueError(
            f"the images lie in [{low:g}, {high:g}]; expected [0, 1]: divide by 255 if they are bytes, and move "
            "normalisation into the model, so that the radius means pixels"
        )
    return torch.cat([_bytes(part) for part in values.split(TOGETHER)])


def _bytes(values: Float[Tensor, "image channel height width"]) -> UInt8[Tensor, "image channel height width"]:
    """255 times floats in [0, 1]. Raises ValueError where that isn't nearly whole."""
    levels = 255 * values.double()
    whole = levels.round()
    # 1e-3 of a level is a hundred times the rounding of float32; float16 rounds an 8-bit pixel by up to 0.07 of one,
    # and bfloat16 by more than half of one, so that it can't hold 8-bit images
    allowed = 0.07 if values.dtype == torch.float16 else 1e-3
    if bool(((levels - whole).abs() > allowed).any()):
        raise ValueError(
            f"the {_name(values.dtype)} images are not all whole multiples of 1/255: use the 8-bit images as they are, "
            "put resizing and normalisation into the model, so that the radius means pixels, or round what was resized "
            "to 8 bits, (255 * images).round() / 255"
        )
    return whole.to(torch.uint8)


def labels_of(labels: object, *, classes: int | None = None) -> Int64[Tensor, " image"]:
    """Class numbers 0 .. classes - 1 (any from 0 on, where the number of classes is not known), on their device.

    Integers of any type, booleans, and floats that are whole numbers. Raises ValueError, with what to do, for
    others, and for another shape, such as one-hot rows.
    """
    values = _tensor(labels, "labels")
    if values.ndim != 1:
        remedy = "labels.argmax(1) of one-hot rows" if values.ndim == 2 and values.shape[1] > 1 else "labels.flatten()"
        raise ValueError(
            f"the labels have shape {list(values.shape)}; expected [image], one class number for each: {remedy}"
        )
    if not len(values):
        raise ValueError("there are no labels; expected at least one image with its label")
    if values.is_complex() or (values.is_floating_point() and not torch.equal(values, values.round())):
        raise ValueError(f"the labels are {_name(values.dtype)} that are not all whole numbers; expected class numbers")
    numbers = values.long()
    check_labels(numbers, classes=classes)
    return numbers


def check_labels(labels: Int64[Tensor, " image"], *, classes: int | None) -> None:
    """Raise ValueError unless all labels are 0 .. classes - 1, or from 0 on where the number is not known."""
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and (classes is None or high < classes):
        return
    allowed = "0 or above" if classes is None else f"0 to {classes - 1} for {classes} classes"
    remedy = ""
    if low == 1 and high == classes:
        remedy = ": they count from 1, so use labels - 1"
    elif low < 0:
        remedy = ": leave out images without a class"
    raise ValueError(f"the labels lie in [{low}, {high}]; expected {allowed}{remedy}")


def paired(
    images: object, labels: object, *, classes: int | None = None
) -> tuple[UInt8[Tensor, "image channel height width"], Int64[Tensor, " image"]]:
    """`pixels_of` and `labels_of`, as many of one as of the other. Raises ValueError."""
    pixels, numbers = pixels_of(images), labels_of(labels, classes=classes)
    if len(pixels) != len(numbers):
        raise ValueError(f"there are {len(pixels)} images and {len(numbers)} labels; expected one label for each image")
    return pixels, numbers


def _check_shape(shape: torch.Size) -> None:
    if len(shape) == 3:
        raise ValueError(
            f"the images have shape {list(shape)}; expected [image, channel, height, width]: images[:, None] adds the "
            "channel of grey images, images[None] makes one image a batch"
        )
    if len(shape) != 4 or not math.prod(shape):
        raise ValueError(
            f"the images have shape {list(shape)}; expected [image, channel, height, width], with at least one image"
        )
    channels, height, width = shape[1:]
    if channels > 4 >= width and height > 4:
        raise ValueError(
            f"the images have shape {list(shape)}, which looks like [image, height, width, channel]; expected "
            "[image, channel, height, width]: use images.permute(0, 3, 1, 2), or transpose(0, 3, 1, 2) of an array"
        )


def _tensor(values: object, name: str) -> Shaped[Tensor, "..."]:
    """The values as a tensor, sharing memory where PyTorch can. Raises ValueError for what is no array of numbers."""
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_meta or values.is_quantized:
            kind = "quantized" if values.is_quantized else "meta" if values.is_meta else str(values.layout)
            raise ValueError(f"the {name} are a {kind} tensor; pass a dense one that holds its values")
        return values.detach()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the {name} are no array: {error}; pass a torch tensor or a NumPy array") from error
    if array.dtype.kind not in "biufc":
        raise ValueError(
            f"the {name} are a {type(values).__name__} of {array.dtype}; pass a tensor or a NumPy array of numbers"
        )
    if array.dtype.itemsize > 1 and array.dtype.kind == "u":
        array = array.astype(np.int64)  # PyTorch computes little with wider unsigned integers
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # PyTorch takes no reversed axes and no foreign byte order, and warns of memory that may not be written
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
