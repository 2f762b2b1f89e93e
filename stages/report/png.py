"""Small images as PNG files: enlarged without smoothing, so that their pixels are seen as they are.

>>> png(np.zeros((1, 8, 8), np.float32))[1:4]
b'PNG'
"""

import io

import numpy as np
from jaxtyping import Float
from PIL import Image

SIDE = 112  # pixels that an enlarged image has at least: about an inch, as many as one sees of it on a page


def png(image: Float[np.ndarray, "channel height width"]) -> bytes:
    """The PNG file of an image in [0, 1], enlarged by a whole factor (nearest neighbour).

    Of 2 channels the first is seen, of 4 the first three.
    """
    image = image[: 3 if len(image) >= 3 else 1]
    levels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    factor = max(1, -(-SIDE // max(image.shape[1:])))
    large = levels.repeat(factor, axis=1).repeat(factor, axis=2)
    file = io.BytesIO()
    Image.fromarray(large[0] if len(large) == 1 else large.transpose(1, 2, 0)).save(file, "PNG", optimize=True)
    return file.getvalue()


def amplification(difference: Float[np.ndarray, "*shape"]) -> float:
    """By how much perturbations are multiplied so that the largest is just not clipped; rounded down to two digits.

    >>> amplification(np.array([0.2, -0.1])), amplification(np.array([8 / 255])), amplification(np.zeros(2))
    (2.5, 15.0, 1.0)
    """
    largest = float(np.abs(difference).max())
    if largest < 1e-6:  # nothing was changed, or float32 rounding only
        return 1.0
    factor = 0.5 / largest * (1 + 1e-5)  # 1e-5: float32 rounding must not turn 2.5 into 2.4
    scale = 10.0 ** (int(np.floor(np.log10(factor))) - 1)
    return float(f"{np.floor(factor / scale) * scale:.2g}")


def amplified(
    difference: Float[np.ndarray, "channel height width"], factor: float
) -> Float[np.ndarray, "channel height width"]:
    """A perturbation around mid grey: brighter where pixels were raised, darker where they were lowered."""
    return np.clip(0.5 + factor * difference, 0, 1)
