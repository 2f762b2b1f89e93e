"""The reverse process (paper, Alg. 2): from an adversary back to a clean image.

With one step, the default, it is the adapter itself and needs no label. With more, the restored image is
attacked again for fewer steps and restored again, along t = T > ... > 1; the paper's `+ eps` of Eq. 9 is
left out, as in its Section 4.1 ("no randomness").
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.rap.norms import step
from stages.rap.threat import ThreatModel

Images = Float[Tensor, "batch channel height width"]


def reverse_times(steps: int, length: int) -> list[int]:
    """The t at which the adapter is asked: ``steps`` values from T = ``length`` down, evenly spaced.

    >>> reverse_times(4, 10), reverse_times(1, 10)
    ([10, 8, 5, 2], [10])
    """
    if not 1 <= steps <= length:
        raise ValueError(f"reverse_steps is {steps}; allowed are 1 to T = {length}")
    return [round(length * (steps - done) / steps) for done in range(steps)]


def reverse_process(
    restore: Callable[[Images, int], Images],
    attack_again: Callable[[Images, int], Images],
    adversary: Float[Tensor, "batch channel height width"],
    times: list[int],
) -> Float[Tensor, "batch channel height width"]:
    """Alg. 2: x-hat_0 = f(x_t, t), then x_{t'} by Alg. 1 from x-hat_0, for each t and the next t' in ``times``."""
    state = adversary
    restored = restore(state, times[0])
    for t in times[1:]:
        state = attack_again(restored, t)
        restored = restore(state, t)
    return restored


def attack_again(
    logits: Callable[[Images], Float[Tensor, "batch class"]],
    restored: Float[Tensor, "batch channel height width"],
    labels: Int64[Tensor, " batch"],
    *,
    steps: int,
    step_size: float,
    threat: ThreatModel,
) -> Float[Tensor, "batch channel height width"]:
    """Alg. 1 inside Alg. 2, line 4: ``steps`` attack steps from a restored image, in [0, 1], without noise.

    The perturbation is a constant for whoever differentiates through it, so gradients reach ``restored``
    unchanged.
    """
    origin = restored.detach()
    state = origin
    for _ in range(steps):
        with torch.enable_grad():
            leaf = state.detach().requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(logits(leaf), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
        state = step(state, gradient, origin, threat, step_size)
    return restored + (state - origin).detach()
