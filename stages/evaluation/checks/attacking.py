"""How checks attack: the plain attacks whose soundness is in question, and variants that look behind them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from stages.evaluation.accuracy import device_of, evaluating, to_float
from stages.evaluation.attacks import Attack, AttackResult, NamedAttack, run_attack
from stages.evaluation.checks.examined import CheckSize, Examined
from stages.evaluation.finite import finite
from stages.evaluation.pgd import PGDConfig, draw_starts, pgd
from stages.evaluation.verdict import misclassified
from stages.rap import losses, norms
from stages.rap.threat import ThreatModel


@dataclass(frozen=True, kw_only=True, eq=False)
class WhiteBox:
    """Attacks through the model's own gradient, the plain evaluation whose soundness is in question."""

    fgsm: AttackResult
    short: AttackResult
    long: AttackResult
    restarted: AttackResult
    doubled: AttackResult

    @property
    def results(self) -> tuple[AttackResult, ...]:
        return self.fgsm, self.short, self.long, self.restarted, self.doubled


def attack_examined(
    examined: Examined,
    size: CheckSize,
    name: str,
    attack: Callable[[slice], Attack],
    *,
    threat: ThreatModel | None = None,
) -> AttackResult:
    """`run_attack` with attacks that know which images they are given, in the examined ball or another.

    ``attack`` makes the attack of a batch from its place among the images.
    """
    parts = []
    for first in range(0, len(examined.images), size.batch):
        part = slice(first, first + size.batch)
        parts.append(
            run_attack(
                NamedAttack(name, attack(part)),
                examined.model,
                examined.images[part],
                examined.labels[part],
                threat or examined.threat,
                batch=size.batch,
            )
        )
    return AttackResult(
        name=name,
        clean=np.concatenate([part.clean for part in parts]),
        robust=np.concatenate([part.robust for part in parts]),
        adversarial=np.concatenate([part.adversarial for part in parts]),
        distance=np.concatenate([part.distance for part in parts]),
        refused=sum(part.refused for part in parts),
        seconds=sum(part.seconds for part in parts),
    )


def run_pgd(
    examined: Examined,
    size: CheckSize,
    config: PGDConfig,
    *,
    name: str | None = None,
    through: nn.Module | None = None,
    threat: ThreatModel | None = None,
    to_the_end: bool = False,
) -> AttackResult:
    """PGD on the examined images, verified on the model; ``through`` gives the gradients in its place.

    ``to_the_end`` goes on where the model is fooled already, so that it is still fooled when it draws other numbers.
    """

    def attack(part: slice) -> Attack:
        rows, run = examined.rows[part], climb if to_the_end else _first_wrong
        return lambda attacked, images, labels, ball: run(
            through or attacked, images, labels, ball, config=config, rows=rows
        )

    return attack_examined(examined, size, name or config.name, attack, threat=threat)


def attack_white_box(examined: Examined, size: CheckSize, *, to_the_end: bool = False) -> WhiteBox:
    """FGSM and PGD with cross-entropy, the attacks of the judge and of most papers, at several strengths."""
    long = PGDConfig(steps=size.steps, seed=size.seed)
    fgsm = PGDConfig(steps=1, step_size=examined.threat.radius, random_start=False)

    def run(config: PGDConfig, name: str | None = None) -> AttackResult:
        return run_pgd(examined, size, config, name=name, to_the_end=to_the_end)

    return WhiteBox(
        fgsm=run(fgsm, "FGSM"),
        short=run(replace(long, steps=size.short_steps)),
        long=run(long),
        restarted=run(replace(long, restarts=size.restarts)),
        doubled=run(replace(long, steps=2 * size.steps)),
    )


def climb(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    *,
    config: PGDConfig,
    rows: Int64[np.ndarray, " image"],
) -> Float[Tensor, "image channel height width"]:
    """The last state of the first run of PGD whose last state fools the model, or of the last run.

    Unlike those of `pgd`, such states are deep in the wrong class, as transfer, rounding, repeated submission and
    models that draw random numbers need them.
    """
    states, fooled = images, torch.zeros_like(labels, dtype=torch.bool)
    for restart in range(config.restarts):
        state = images
        if config.random_start:
            state = draw_starts(images, threat, rows=rows, restart=restart, seed=config.seed)
        for _ in range(config.steps):
            gradient = cross_entropy_gradient(model, state, labels)
            state = norms.step(state, gradient, images, threat, config.step(threat))
        states = torch.where(fooled[:, None, None, None], states, state)
        with torch.no_grad():
            fooled |= misclassified(model(state), labels)
    return states


def ascend(
    model: nn.Module, examined: Examined, size: CheckSize, config: PGDConfig
) -> Float[Tensor, "image channel height width"]:
    """`climb` on a model, for each examined image; the states are on the CPU."""
    device, states = device_of(model), []
    with evaluating(model):
        for part in torch.arange(len(examined.images)).split(size.batch):
            clean, labels = to_float(examined.images[part]).to(device), examined.labels[part].to(device)
            rows = examined.rows[part.numpy()]
            states.append(climb(model, clean, labels, examined.threat, config=config, rows=rows).cpu())
    return torch.cat(states)


def submit(
    examined: Examined, size: CheckSize, name: str, states: Float[Tensor, "image channel height width"]
) -> AttackResult:
    """What images that were made elsewhere do to the examined model, verified."""
    return attack_examined(
        examined, size, name, lambda part: lambda model, images, labels, threat: states[part].to(images)
    )


def cross_entropy_gradient(
    model: nn.Module, states: Float[Tensor, "image channel height width"], labels: Int64[Tensor, " image"]
) -> Float[Tensor, "image channel height width"]:
    """The gradient of the cross-entropy by each image, `finite`; of a model on which it does not depend, zero."""
    leaf = states.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = losses.cross_entropy(model(leaf), labels).sum()
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True, materialize_grads=True)
    return finite(gradient)


@contextmanager
def fixed_seed(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's random numbers from a seed inside, and as they would have been outside."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _first_wrong(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    *,
    config: PGDConfig,
    rows: Int64[np.ndarray, " image"],
) -> Float[Tensor, "image channel height width"]:
    return pgd(model, images, labels, threat, config=config, rows=rows)[0]
