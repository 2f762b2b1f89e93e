"""Pictures of any size, from files or from other libraries' data sets, to one array of 8-bit pixels.

>>> array_of([Image.new("RGB", (40, 30))], size=(20, 20), channels=3).shape
(1, 3, 20, 20)
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stages.data.formats import DataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Grey in more than 8 bits, which Pillow cuts off at 255."""
GREY = ("1", "L", *DEEP)


def array_of(
    pictures: Sequence[Image.Image | str], *, size: tuple[int, int] | None, channels: int | None = None
) -> UInt8[np.ndarray, "image channel height width"]:
    """The pixels of pictures, or of files of them, one after the other, so that only the result is held.

    With a ``size``, height and width, each is resized to cover it (bilinear, as torchvision's Resize) and its centre is
    cut out; without one all must have one size. Without ``channels`` the first says whether they are grey. Raises
    DataError for a file that is no picture, for pictures of different sizes, for one in colour among grey ones, and
    for pixels that 8 bits do not hold.
    """
    found: np.ndarray | None = None
    for number, picture in enumerate(pictures):
        called, opened = _called(picture, number), _opened(picture)
        if found is None:
            wanted = channels or (1 if opened.mode in GREY else 3)
        elif channels is None and found.shape[1] == 1 and opened.mode not in GREY:
            raise DataError(f"the first picture is grey and {called} is in colour: give --data.channels, 1 or 3")
        else:
            wanted = found.shape[1]
        pixels = _pixels(opened, called, size, wanted)
        if found is None:
            found = np.empty((len(pictures), *pixels.shape), np.uint8)
        if pixels.shape != found.shape[1:]:
            raise DataError(
                f"the pictures have different sizes, such as {found.shape[2]}x{found.shape[3]} and "
                f"{pixels.shape[1]}x{pixels.shape[2]} ({called}): give --data.image-size, one number or height and "
                "width, to which each is resized and cropped"
            )
        found[number] = pixels
    if found is None:
        raise DataError("there are no pictures; expected at least one")
    return found


def _opened(picture: Image.Image | str) -> Image.Image:
    if not isinstance(picture, str):
        return picture
    try:
        with Image.open(picture) as opened:
            opened.load()
    except Exception as error:  # whatever a decoder raises at bytes that it does not understand
        raise DataError(f"{picture} cannot be read as a picture ({error}): remove it, or copy it again") from error
    return opened


def _pixels(
    picture: Image.Image, called: str, size: tuple[int, int] | None, channels: int
) -> UInt8[np.ndarray, "channel height width"]:
    if picture.mode in DEEP:
        picture = _in_8_bits(picture, called)
    picture = picture.convert(MODES[channels])
    if size is not None:
        picture = _cover(picture, size)
    return np.asarray(picture).reshape(picture.height, picture.width, channels).transpose(2, 0, 1)


def _in_8_bits(picture: Image.Image, called: str) -> Image.Image:
    deep = np.asarray(picture)
    grey = np.nan_to_num(deep, nan=0).clip(0, 255).astype(np.uint8)
    if not np.array_equal(grey, deep):
        raise DataError(
            f"{called} has pixels from {deep.min():g} to {deep.max():g}, in more than 8 bits (mode {picture.mode}); "
            "images are 8-bit: scale all of them alike to whole numbers in 0..255, and save them again"
        )
    return Image.fromarray(grey)


def _cover(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centre of a picture that was resized to the least size that covers another."""
    height, width = size
    scale = max(height / picture.height, width / picture.width)
    across, down = (max(1, math.floor(scale * side + 0.5)) for side in picture.size)
    resized = picture.resize((max(across, width), max(down, height)), Image.Resampling.BILINEAR)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def _called(picture: Image.Image | str, number: int) -> str:
    return picture if isinstance(picture, str) else f"picture {number}"
