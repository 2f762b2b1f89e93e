"""PGD for evaluation: fresh, in floating point, and independent of the attack that a recipe trains with.

Projected gradient descent (Madry et al. 2018) from random starts in the ball; it is off the lattice on
which training attacks run, and a state that fools the model counts wherever on its way it was met.

>>> PGDConfig(steps=10).step(ThreatModel(norm="Linf", radius=0.2))
0.05
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from stages.evaluation.accuracy import evaluating
from stages.evaluation.attacks import NamedAttack, run_attack
from stages.evaluation.finite import finite
from stages.evaluation.verdict import misclassified
from stages.rap import losses
from stages.rap.norms import draw_in_ball, step
from stages.rap.threat import ThreatModel
from stages.settings import check_settings

PGDLoss = Literal["cross-entropy", "dlr", "margin", "targeted margin"]
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross-entropy": lambda logits, labels, targets: losses.cross_entropy(logits, labels),
    "dlr": lambda logits, labels, targets: losses.dlr(logits, labels),
    "margin": lambda logits, labels, targets: losses.margin(logits, labels),
    "targeted margin": losses.targeted_margin,
}


@dataclass(frozen=True, kw_only=True)
class PGDConfig:
    """One PGD attack of the evaluation."""

    steps: int = 20
    """Gradient steps of each restart."""
    restarts: int = 1
    """Runs from different random starts; an image that one of them breaks is broken."""
    step_size: float | None = None
    """Step size in pixels of [0, 1]; unset: 2.5 radius / steps, or the radius where it falls."""
    falling: bool = False
    """Let the step size fall linearly to nothing."""
    loss: PGDLoss = "cross-entropy"
    """Loss that is raised. Cross-entropy breaks most in few steps; margin and dlr, unlike it, are not stalled
    by logits of 100 and more. With targeted margin each restart aims at a class of its own: the first at the wrong
    class that is likeliest on the clean image, the second at the next one."""
    random_start: bool = True
    """Start uniformly in the ball instead of at the clean image."""
    batch: int = 128
    """Images attacked together."""
    seed: int = 0
    """Seed of the random starts, together with restart and row."""

    def __post_init__(self) -> None:
        check_settings(self, "pgd")
        for name in ("steps", "restarts", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"pgd.{name} is {getattr(self, name)}; it must be at least 1")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"pgd.step_size is {self.step_size:g}; it must be greater than 0")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"pgd.restarts is {self.restarts} without random starts, which repeats one run: "
                "set random_start, or 1 restart"
            )

    @property
    def name(self) -> str:
        """The attack in a table, such as "PGD-100 x 3"."""
        restarts = f" x {self.restarts}" if self.restarts > 1 else ""
        return f"PGD-{self.steps}{restarts}" + (f" ({self.loss})" if self.loss != "cross-entropy" else "")

    def step(self, threat: ThreatModel, number: int = 0) -> float:
        """The size of a step against a threat model, in pixels of [0, 1]."""
        if self.falling:
            return (self.step_size or threat.radius) * (1 - number / self.steps)
        return self.step_size or 2.5 * threat.radius / self.steps


def pgd(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    *,
    config: PGDConfig,
    rows: Int64[np.ndarray, " image"],
) -> tuple[Float[Tensor, "image channel height width"], Bool[Tensor, " image"]]:
    """The adversarial images, and which of them the model misclassifies.

    An image is broken when the clean image or any state of any restart is misclassified, and its first
    such state is returned; of the others, the last state. ``rows`` key the random starts, so results
    do not depend on which images are attacked together, beyond the rounding of the model's own sums.
    The model, in whatever mode it is, is attacked in eval mode and left as it was.

    A NaN is wrong where it is the model's answer, and leads nowhere where it is in a gradient. Raises ValueError for an
    L1 ball.
    """
    if threat.norm == "L1":
        raise ValueError("this PGD is for Linf and L2 balls; in L1 use AutoAttack, whose steps are made for it")
    adversaries = images.clone()
    with evaluating(model):
        with torch.no_grad():
            logits = torch.cat([model(part) for part in images.split(config.batch)])
        broken, likeliest = misclassified(logits, labels), _likeliest(logits, labels)
        # Restarts of few images share batches: small ones cost nearly twice as much an image.
        restarts, tried = (runs.ravel() for runs in np.indices((config.restarts, len(images))))
        while len(left := np.flatnonzero(~broken.numpy(force=True)[tried])):
            restarts, tried = restarts[left], tried[left]
            now, restart = tried[: config.batch], restarts[: config.batch]
            start = _starts(images[now], threat, config, rows=rows[now], restarts=restart)
            targets = likeliest[now, restart % likeliest.shape[1]]
            states, wrong = _climb(model, start, images[now], labels[now], targets, threat, config)
            chosen = _one_of_each(now, wrong.numpy(force=True))
            adversaries[now[chosen]], broken[now[chosen]] = states[chosen], wrong[chosen]
            restarts, tried = restarts[config.batch :], tried[config.batch :]
    return adversaries, broken


def pgd_mask(
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    *,
    config: PGDConfig,
    rows: Int64[np.ndarray, " image"],
) -> Bool[np.ndarray, " image"]:
    """True where an image is classified correctly and what `pgd` makes of it is no adversary, by `run_attack`."""

    def attack(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        return pgd(model, images, labels, threat, config=config, rows=rows)[0]

    named = NamedAttack(config.name, attack, is_batched=True)
    return run_attack(named, model, images, labels, threat, batch=config.batch).robust


def draw_starts(
    clean: Float[Tensor, "image channel height width"],
    threat: ThreatModel,
    *,
    rows: Int64[np.ndarray, " image"],
    restart: int,
    seed: int,
) -> Float[Tensor, "image channel height width"]:
    """A uniform point of the ball around each image, clamped to [0, 1]: a function of seed, restart and row."""
    pixels = clean[0].numel()
    noise = np.stack([draw_in_ball(threat, pixels, "pgd", seed, restart, int(row)) for row in rows])
    return (clean + torch.from_numpy(noise).to(clean).reshape(clean.shape)).clamp(0, 1)


def _starts(
    clean: Float[Tensor, "image channel height width"],
    threat: ThreatModel,
    config: PGDConfig,
    *,
    rows: Int64[np.ndarray, " image"],
    restarts: Int64[np.ndarray, " image"],
) -> Float[Tensor, "image channel height width"]:
    """Where each image starts in a restart of its own."""
    start = clean.clone()
    if config.random_start:
        for restart in np.unique(restarts):
            here = np.flatnonzero(restarts == restart)
            start[here] = draw_starts(clean[here], threat, rows=rows[here], restart=int(restart), seed=config.seed)
    return start


def _likeliest(logits: Float[Tensor, "image class"], labels: Int64[Tensor, " image"]) -> Int64[Tensor, "image wrong"]:
    """The wrong classes of each image, the likeliest first."""
    return logits.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]


def _one_of_each(images: Int64[np.ndarray, " run"], wrong: Bool[np.ndarray, " run"]) -> Int64[np.ndarray, " image"]:
    """For each image, its first run whose state is wrong, or else its last run."""
    chosen: dict[int, int] = {}
    for run, image in enumerate(images.tolist()):
        if image not in chosen or not wrong[chosen[image]]:
            chosen[image] = run
    return np.array(list(chosen.values()))


def _climb(
    model: nn.Module,
    start: Float[Tensor, "image channel height width"],
    clean: Float[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    targets: Int64[Tensor, " image"],
    threat: ThreatModel,
    config: PGDConfig,
) -> tuple[Float[Tensor, "image channel height width"], Bool[Tensor, " image"]]:
    """One run each; an image stops where it is first misclassified, and costs nothing from then on."""
    states, broken = start.clone(), torch.zeros_like(labels, dtype=torch.bool)
    remaining = torch.arange(len(labels), device=labels.device)
    for number in range(config.steps):
        gradient, wrong = _gradient(
            model, states[remaining], labels[remaining], targets[remaining], LOSSES[config.loss]
        )
        broken[remaining] = wrong
        remaining, gradient = remaining[~wrong], gradient[~wrong]
        if not len(remaining):
            return states, broken
        size = config.step(threat, number)
        states[remaining] = step(states[remaining], gradient, clean[remaining], threat, size)
    with torch.no_grad():
        broken[remaining] = misclassified(model(states[remaining]), labels[remaining])
    return states, broken


def _gradient(
    model: nn.Module,
    states: Float[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    targets: Int64[Tensor, " image"],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Float[Tensor, "image channel height width"], Bool[Tensor, " image"]]:
    states = states.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(states)
        (gradient,) = torch.autograd.grad(loss(logits, labels, targets).sum(), states)
    return finite(gradient), misclassified(logits.detach(), labels)
