"""Threat models, and the integer lattice on which training attacks run.

>>> threat = ThreatModel(norm="Linf", radius=0.2)
>>> lattice = Lattice(5100)
>>> lattice.level(threat.radius, "radius")
1020
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int16, UInt8
from torch import Tensor

Norm = Literal["Linf", "L2", "L1"]
NORMS: tuple[Norm, ...] = ("Linf", "L2", "L1")

# 5100 = 20 x 255, so 0.3, 0.2, 0.05, 0.02 and 8/255 are whole; 1020 = 4 x 255 is the coarsest multiple
# of the pixel grid at which rounding no longer weakens an L2 attack.
DENOMINATORS: dict[str, int] = {"Linf": 5100, "L2": 1020}


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """What an attacker may change: a ball around the clean image, intersected with [0, 1]."""

    norm: Norm = "Linf"
    """Norm of the ball: Linf or L2; L1 is for evaluation by AutoAttack, nothing is trained against it."""
    radius: float = 8 / 255
    """Radius of the ball, in pixels of [0, 1]; fractions such as 8/255 are understood. As a flag also --eps."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"threat.norm is {self.norm!r}; allowed are {', '.join(NORMS)}")
        object.__setattr__(self, "radius", _number(self.radius))
        if not 0 < self.radius < math.inf:
            raise ValueError(f"threat.radius is {self.radius:g}; it must be greater than 0, and finite")
        if self.norm == "Linf" and self.radius > 1:
            raise ValueError(
                f"threat.radius is {self.radius:g}, but pixels lie in [0, 1]: divide a radius in 0..255 by 255"
            )


def _number(radius: object) -> float:
    """A radius as Python's own number, which is what is recorded. Raises ValueError for what is none."""
    found, remedy = f"the {type(radius).__name__} {radius!r}", ""
    if isinstance(radius, str):
        found, remedy = f"the text {radius!r}", " (without the quotes, a fraction such as 8/255 is one)"
    elif not isinstance(radius, bool | np.bool_) and getattr(radius, "ndim", 0) == 0:
        with suppress(TypeError, ValueError, OverflowError):
            return float(radius)  # pyright: ignore[reportArgumentType] - or one of these errors
    raise ValueError(f"threat.radius is {found}; it must be a number of pixels of [0, 1]{remedy}")


def check_radius(threat: ThreatModel, pixels: int) -> None:
    """Refuse a ball that holds every image of so many pixels (all channels), which is a radius in another unit.

    Raises ValueError when the radius reaches the diagonal of [0, 1]^pixels in the norm.
    """
    diagonal = {"Linf": 1.0, "L2": math.sqrt(pixels), "L1": float(pixels)}[threat.norm]
    if threat.radius >= diagonal:
        raise ValueError(
            f"the radius is {threat.radius:g}, but no two images in [0, 1] are farther apart than {diagonal:g} in "
            f"{threat.norm}: give the radius in pixels of [0, 1] (divide one in 0..255 by 255)"
        )


def default_denominator(norm: Norm) -> int:
    """The grid of a norm's training attacks. Raises ValueError for L1, which has none."""
    if norm not in DENOMINATORS:
        raise ValueError(
            f"threat.norm is {norm}, in which a model can be evaluated but not trained; train against "
            f"{' or '.join(DENOMINATORS)}, and evaluate with python -m pipeline.evaluate --norm {norm}"
        )
    return DENOMINATORS[norm]


@dataclass(frozen=True)
class Lattice:
    """The grid 1/denominator, on which a stored level is the model's float32 input, bit for bit."""

    denominator: int

    def __post_init__(self) -> None:
        if self.denominator < 255 or self.denominator % 255 or self.denominator > 16320:
            raise ValueError(
                f"the lattice denominator is {self.denominator}; it must be a multiple of 255 up to 16320, "
                "so that clean images lie on the lattice and sums of two levels fit in int16"
            )

    def from_bytes(self, images: UInt8[Tensor, "*shape"]) -> Int16[Tensor, "*shape"]:
        """The levels of uint8 images."""
        return images.to(torch.int16) * (self.denominator // 255)

    def to_float(self, levels: Int16[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The float32 images in [0, 1] of levels.

        Divides by a tensor on the same device: CUDA multiplies by the reciprocal of a number, which changes half of
        the values. The tensor is filled there, since one that is sent there is waited for.
        """
        return levels.to(torch.float32) / torch.full((), self.denominator, dtype=torch.float32, device=levels.device)

    def level(self, value: float, name: str) -> int:
        """The level nearest to a length in pixels of [0, 1].

        Raises ValueError when rounding changes the length by more than 1 %.
        """
        level = round(value * self.denominator)
        if level < 1 or abs(level / self.denominator - value) > 0.01 * value:
            below = max(1, int(value * self.denominator))
            raise ValueError(
                f"{name} is {value:g}, which the lattice of 1/{self.denominator} changes by more than 1 %; "
                f"the nearest allowed are {below}/{self.denominator} = {below / self.denominator:g} "
                f"and {below + 1}/{self.denominator} = {(below + 1) / self.denominator:g}"
            )
        return level

    def snap(self, value: float) -> float:
        """The nearest length on the lattice, at least one level."""
        return max(1, round(value * self.denominator)) / self.denominator
