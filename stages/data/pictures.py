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


def array_of(
    pictures: Sequence[Image.Image | str], *, size: tuple[int, int] | None, channels: int
) -> UInt8[np.ndarray, "image channel height width"]:
    """The pixels of pictures, or of files of them, one after the other, so that only the result is held.

    With a ``size``, height and width, each is resized to cover it (bilinear, as torchvision's Resize) and its centre is
    cut out; without one all must have one size. Raises DataError for a file that is no picture, and for pictures of
    different sizes.
    """
    found: np.ndarray | None = None
    for number, picture in enumerate(pictures):
        pixels = _pixels(picture, size, channels)
        if found is None:
            found = np.empty((len(pictures), *pixels.shape), np.uint8)
        if pixels.shape != found.shape[1:]:
            raise DataError(
                f"the pictures have different sizes, such as {found.shape[2]}x{found.shape[3]} and "
                f"{pixels.shape[1]}x{pixels.shape[2]} ({_called(picture, number)}): give --data.image-size, one number "
                "or height and width, to which each is resized and cropped"
            )
        found[number] = pixels
    if found is None:
        raise DataError("there are no pictures; expected at least one")
    return found


def _pixels(
    picture: Image.Image | str, size: tuple[int, int] | None, channels: int
) -> UInt8[np.ndarray, "channel height width"]:
    if isinstance(picture, str):
        try:
            with Image.open(picture) as opened:
                return _pixels(opened.convert(MODES[channels]), size, channels)
        except OSError as error:
            raise DataError(f"{picture} cannot be read as a picture ({error}): remove it, or copy it again") from error
    picture = picture.convert(MODES[channels])
    if size is not None:
        picture = _cover(picture, size)
    return np.asarray(picture).reshape(picture.height, picture.width, channels).transpose(2, 0, 1)


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
