"""The attack process (paper, Alg. 1): an attack that returns every state on its way.

An attack is a loss x a step x a start x a projection. It runs on the integer lattice, so what is
stored is what the model saw. Where the paper leaves a point open, the option of `AttackConfig` says so.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8, Int16, Int64, UInt8
from torch import Tensor

from stages import randomness
from stages.rap.losses import ATTACK_LOSSES, AttackLoss
from stages.rap.process import AttackProcess
from stages.rap.robust import RobustClassifier


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The states of a segment, as levels, and what was measured at each step.

    ``success``, ``losses`` and ``zero_gradients`` belong to the states that were attacked, x_0 .. x_{k-1}:
    whether they were misclassified, the attack's loss, and the share of pixels without gradient.
    """

    levels: Int16[Tensor, "state batch channel height width"]
    signs: Int8[Tensor, "step batch channel height width"] | None
    success: Bool[Tensor, "step batch"]
    losses: Float[Tensor, "step batch"]
    zero_gradients: Float[Tensor, "step batch"]

    def cpu(self) -> "Trajectory":
        """The same on the CPU."""
        moved: dict[str, Any] = {name: None if value is None else value.cpu() for name, value in vars(self).items()}
        return Trajectory(**moved)

    @staticmethod
    def join(parts: list["Trajectory"]) -> "Trajectory":
        """The trajectories of several batches, one behind the other."""
        columns: dict[str, list[Any]] = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
        joined: dict[str, Any] = {
            name: None if column[0] is None else torch.cat(column, 1) for name, column in columns.items()
        }
        return Trajectory(**joined)


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


def advance_linf(
    levels: Int16[Tensor, "*shape"],
    sign: Int8[Tensor, "*shape"],
    step: int,
    low: Int16[Tensor, "*shape"],
    high: Int16[Tensor, "*shape"],
) -> Int16[Tensor, "*shape"]:
    """One step of Alg. 1, line 8, on the lattice: the recurrence by which a stored trajectory comes back."""
    return torch.add(levels, sign.to(torch.int16), alpha=step).clamp_(low, high)


def advance_l2(
    levels: Int16[Tensor, "batch *shape"],
    clean: Int16[Tensor, "batch *shape"],
    gradient: Float[Tensor, "batch *shape"],
    process: AttackProcess,
) -> Int16[Tensor, "batch *shape"]:
    """One L2 step: along the gradient, back to the ball, toward the clean image to the grid, into [0, 1].

    Rounding toward the clean image keeps the state in the ball; a zero gradient does not move.
    """
    direction = gradient.double().flatten(1)
    length = direction.norm(dim=1, keepdim=True)
    moving = length > 0
    difference = (levels - clean).double().flatten(1)
    difference = difference + process.step * direction / length.where(moving, torch.ones_like(length))
    if process.project:
        norm = difference.norm(dim=1, keepdim=True)
        difference = difference * (process.bound / norm.clamp(min=process.bound))
    moved = clean + difference.trunc().reshape(clean.shape).clamp(-process.denominator, process.denominator).to(
        torch.int16
    )
    moved = moved.clamp(0, process.denominator)
    return torch.where(moving.reshape(-1, *[1] * (clean.ndim - 1)), moved, levels)


def attack(
    robust: RobustClassifier,
    images: UInt8[Tensor, "batch channel height width"],
    labels: Int64[Tensor, " batch"],
    process: AttackProcess,
    start: Int16[Tensor, "batch channel height width"],
    *,
    steps: int | None = None,
    made: Int64[Tensor, " batch"] | None = None,
    seed: int = 0,
) -> Trajectory:
    """The attack process of Alg. 1 on a batch: all states x_0 .. x_k, k = ``steps`` (default T).

    ``start`` is x_0 minus the clean image in levels, before clamping: noise, or the end of an earlier
    segment, after ``made`` steps. ``seed`` only matters for random conditioning. The clean images stay
    the centre of the ball and the reconstruction target (the paper overwrites x_0 by the noisy one).
    """
    steps = process.steps if steps is None else steps
    made = torch.zeros_like(labels) if made is None else made
    clean = process.lattice.from_bytes(images)
    low, high = process.limits(clean)
    levels = torch.minimum(torch.maximum(clean + start, low), high)
    loss = ATTACK_LOSSES[process.loss]
    states, signs, success, losses, zeros = [levels], [], [], [], []
    for t in [_conditioning(process, made + step, seed + step) for step in range(steps)]:
        gradient, value, wrong = loss_gradient(
            robust,
            process.lattice.to_float(levels),
            process.lattice.to_float(clean),
            labels,
            t,
            loss,
            autocast=process.autocast(levels.device),
        )
        if process.norm == "Linf":
            signs.append(gradient.sign().to(torch.int8))
            levels = advance_linf(levels, signs[-1], process.step, low, high)
        else:
            levels = advance_l2(levels, clean, gradient, process)
        states.append(levels)
        success.append(wrong)
        losses.append(value)
        zeros.append((gradient == 0).flatten(1).float().mean(1))
    return Trajectory(
        levels=torch.stack(states),
        signs=torch.stack(signs) if signs else None,
        success=torch.stack(success),
        losses=torch.stack(losses),
        zero_gradients=torch.stack(zeros),
    )


def loss_gradient(
    robust: RobustClassifier,
    states: Float[Tensor, "batch channel height width"],
    clean: Float[Tensor, "batch channel height width"],
    labels: Int64[Tensor, " batch"],
    conditioning: Int64[Tensor, " batch"],
    loss: AttackLoss,
    *,
    autocast: AbstractContextManager,
) -> tuple[Float[Tensor, "batch channel height width"], Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Gradient of the attack's loss in the states, the loss of each image, and which are misclassified."""
    states = states.detach().requires_grad_(True)
    with torch.enable_grad():
        with autocast:
            restored = robust.restore(states, conditioning)
            logits = robust.classify(restored).float()
        value = loss(logits, labels, restored.float(), clean)
        (gradient,) = torch.autograd.grad(value.sum(), states)
    return gradient, value.detach(), logits.detach().argmax(1) != labels


def _conditioning(process: AttackProcess, made: Int64[Tensor, " batch"], seed: int) -> Int64[Tensor, " batch"]:
    if process.conditioning == "state":
        return made
    if process.conditioning == "deployed":
        return torch.full_like(made, process.steps)
    drawn = randomness.integers(1, process.steps + 1, len(made), "conditioning", seed)
    return torch.from_numpy(drawn).to(made.device)
