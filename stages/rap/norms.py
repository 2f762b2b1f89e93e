"""What a norm is to an attack: where it starts, which way is steepest, how a step ends in the ball.

Everything that tells L-inf from L2 in an attack is here, twice: in floating point, for the attacks that judge a model
and for the reverse process, and in whole levels of the lattice, for the attack process whose states are stored.
"""

import numpy as np
import torch
from jaxtyping import Float, Int8, Int16, Int64
from torch import Tensor

from stages import randomness
from stages.rap.process import AttackProcess
from stages.rap.threat import Norm, ThreatModel

Images = Float[Tensor, "image channel height width"]
Levels = Int16[Tensor, "image channel height width"]


def draw_in_ball(threat: ThreatModel, pixels: int, *key: str | int) -> Float[np.ndarray, " pixel"]:
    """A uniform point of the ball around 0: a function of the key, whose first part is the name of its use."""
    purpose, *rest = key
    if threat.norm == "Linf":
        return threat.radius * (2 * randomness.uniform(pixels, f"{purpose} start", *rest) - 1)
    direction = randomness.normal(pixels, f"{purpose} start", *rest)
    share = float(randomness.uniform(1, f"{purpose} length", *rest)[0]) ** (1 / pixels)
    return direction / np.linalg.norm(direction) * (threat.radius * share)


def draw_on_border(images: Images, threat: ThreatModel, rows: Int64[np.ndarray, " image"], *key: str | int) -> Images:
    """A random corner of the L-inf ball around each image, or a uniform point of the L2 sphere, beyond [0, 1] as well.

    It is a function of the key and the image's row.
    """
    drawn = np.stack([randomness.normal(images[0].numel(), *key, int(row)) for row in rows])
    length = np.abs(drawn) if threat.norm == "Linf" else np.linalg.norm(drawn, axis=1, keepdims=True)
    return images + torch.from_numpy(threat.radius * drawn / length).to(images).reshape(images.shape)


def direction(gradient: Images, norm: Norm) -> Images:
    """The steepest direction of length 1 in the norm; a zero gradient gives zero."""
    if norm == "Linf":
        return gradient.sign()
    tiny = torch.finfo(gradient.dtype).tiny  # avoids 0/0 at a zero gradient
    largest = gradient.flatten(1).abs().amax(1).clamp(min=tiny)
    scaled = gradient / largest[:, None, None, None]  # first, as the squares of small gradients underflow
    length = scaled.flatten(1).norm(dim=1).clamp(min=1)
    return scaled / length[:, None, None, None]


def project(states: Images, clean: Images, threat: ThreatModel) -> Images:
    """The nearest point of the ball, then of [0, 1], which is no farther from the clean image."""
    if threat.norm == "Linf":
        return states.clamp(clean - threat.radius, clean + threat.radius).clamp(0, 1)
    difference = states - clean
    length = difference.flatten(1).norm(dim=1).clamp(min=threat.radius)
    return (clean + difference * (threat.radius / length)[:, None, None, None]).clamp(0, 1)


def step(states: Images, gradient: Images, clean: Images, threat: ThreatModel, size: float) -> Images:
    """A step of ``size``, in pixels of [0, 1], along the gradient, and back into the ball and [0, 1]."""
    return project(states + size * direction(gradient, threat.norm), clean, threat)


def draw_start(
    process: AttackProcess, seed: int, rows: Int64[np.ndarray, " batch"], shape: tuple[int, ...]
) -> Int16[Tensor, "batch channel height width"]:
    """The noise of Alg. 1, line 4, in levels, for rows of the data set: a function of the seed and the row.

    Uniform Linf starts are integers of a named hash (`randomness.start_levels`) and need not be stored.
    """
    pixels = int(np.prod(shape))
    if process.start == "none":
        noise = np.zeros((len(rows), pixels), np.int16)
    elif process.norm == "Linf" and process.start == "uniform":
        noise = randomness.start_levels(seed, rows, pixels, process.noise)
    else:
        noise = np.stack([_start_of_row(process, seed, int(row), pixels) for row in rows])
    return torch.from_numpy(noise).reshape(len(rows), *shape)


def _start_of_row(process: AttackProcess, seed: int, row: int, pixels: int) -> Int16[np.ndarray, " pixel"]:
    normal = randomness.normal(pixels, "start", seed, row)
    if process.start == "uniform":  # L2: a uniform direction, and a length that fills the ball evenly
        share = float(randomness.uniform(1, "length", seed, row)[0]) ** (1.0 / pixels)
        noise = normal / np.linalg.norm(normal) * (process.noise * share)
    else:
        noise = normal * process.noise
        if process.norm == "L2" and process.project:
            noise *= min(1.0, process.bound / float(np.linalg.norm(noise)))
    return np.clip(np.trunc(noise), -process.denominator, process.denominator).astype(np.int16)


def shrink(difference: Levels, process: AttackProcess) -> Levels:
    """Perturbations shrunk to the ball by their length; those of L-inf are clamped where they are used."""
    if process.norm == "Linf" or not process.project:
        return difference
    norm = difference.double().flatten(1).norm(dim=1)[:, None, None, None]
    return (difference.double() * (process.bound / norm.clamp(min=process.bound))).trunc().to(torch.int16)


def advance(
    levels: Levels, gradient: Images, clean: Levels, process: AttackProcess, limits: tuple[Levels, Levels]
) -> tuple[Levels, Int8[Tensor, "image channel height width"] | None]:
    """One step of Alg. 1, line 8, on the lattice; for L-inf with the signs by which `advance_linf` makes it again.

    ``limits`` are the process's, of the clean images.
    """
    if process.norm == "Linf":
        signs = gradient.sign().to(torch.int8)
        return advance_linf(levels, signs, process.step, *limits), signs
    return _advance_l2(levels, gradient, clean, process), None


def advance_linf(
    levels: Int16[Tensor, "*shape"],
    sign: Int8[Tensor, "*shape"],
    step: int,
    low: Int16[Tensor, "*shape"],
    high: Int16[Tensor, "*shape"],
) -> Int16[Tensor, "*shape"]:
    """The recurrence by which a stored trajectory comes back."""
    return torch.add(levels, sign.to(torch.int16), alpha=step).clamp_(low, high)


def _advance_l2(levels: Levels, gradient: Images, clean: Levels, process: AttackProcess) -> Levels:
    """One L2 step: along the gradient, back to the ball, toward the clean image to the grid, into [0, 1].

    Rounding toward the clean image keeps the state in the ball; a zero gradient does not move.
    """
    steepest = gradient.double().flatten(1)
    length = steepest.norm(dim=1, keepdim=True)
    moving = length > 0
    difference = (levels - clean).double().flatten(1)
    difference = difference + process.step * steepest / length.where(moving, torch.ones_like(length))
    if process.project:
        norm = difference.norm(dim=1, keepdim=True)
        difference = difference * (process.bound / norm.clamp(min=process.bound))
    moved = clean + difference.trunc().reshape(clean.shape).clamp(-process.denominator, process.denominator).to(
        torch.int16
    )
    moved = moved.clamp(0, process.denominator)
    return torch.where(moving[:, :, None, None], moved, levels)
