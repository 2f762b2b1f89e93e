"""The attack process (paper, Alg. 1): an attack that returns every state on its way.

An attack is a loss x a step x a start x a projection; only `stages.rap.norms` knows the norm. It runs on the integer
lattice, so what is stored is what the model saw. Where the paper leaves a point open, `AttackConfig` has an option.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int8, Int16, Int64, UInt8
from torch import Tensor

from stages.rap.losses import ATTACK_LOSSES, AttackLoss
from stages.rap.norms import advance
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


def attack(
    robust: RobustClassifier,
    images: UInt8[Tensor, "batch channel height width"],
    labels: Int64[Tensor, " batch"],
    process: AttackProcess,
    start: Int16[Tensor, "batch channel height width"],
    times: Int64[Tensor, "step #batch"] | None = None,
) -> Trajectory:
    """The attack process of Alg. 1 on a batch: all states x_0 .. x_k.

    ``start`` is x_0 minus the clean image in levels, before clamping: noise, or the end of an earlier segment.
    ``times`` are the t that the adapter is given at each of the k steps (`AttackProcess.times`); unset: those of T
    steps from noise. The clean images stay the centre of the ball and the reconstruction target (the paper overwrites
    x_0 by the noisy one).
    """
    times = process.times(process.steps, torch.zeros_like(labels)) if times is None else times.to(labels.device)
    clean = process.lattice.from_bytes(images)
    limits = process.limits(clean)
    levels = torch.minimum(torch.maximum(clean + start, limits[0]), limits[1])
    loss = ATTACK_LOSSES[process.loss]
    states, signs, success, losses, zeros = [levels], [], [], [], []
    for t in times.expand(-1, len(labels)):
        gradient, value, wrong = loss_gradient(
            robust,
            process.lattice.to_float(levels),
            process.lattice.to_float(clean),
            labels,
            t,
            loss,
            autocast=process.autocast(levels.device),
        )
        levels, sign = advance(levels, gradient, clean, process, limits)
        states.append(levels)
        if sign is not None:
            signs.append(sign)
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
