"""Ways of training against attacks that keep everything in memory, in the pipeline's own attack, networks and learner.

What a reviewer asks to see beside stored trajectories; each with its own batch, learning rate and attack.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int16, Int64
from rival_updates import Consistent
from torch import Tensor

from stages import randomness
from stages.rap.attack import attack, loss_gradient
from stages.rap.losses import ATTACK_LOSSES
from stages.rap.norms import advance, draw_start
from stages.training.adapter import Learner
from stages.training.batches import TrainingBatch
from stages.training.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A method with its settings; lengths in units of the radius."""

    source: str
    batch: int = 32
    learning_rate: float = 3e-3
    ema: float = 0.0
    steps: int | None = 1
    """Attack steps of a visit; unset: T, as in the recipe."""
    step: float | None = None
    """Unset: 2.5 radius / steps, at most the radius."""
    noise: float = 1.0
    projection: bool = True
    life: int = 1
    """Most visits of a perturbation before it starts from noise again."""
    restart: float = 0.0
    """Chance of that at each visit."""
    states: Literal["last", "uniform", "own"] = "last"
    """Trained on: the last state, one of the trajectory, or one of a trajectory that was attacked no further."""
    universal: bool = False
    """One perturbation for all images."""
    replays: int = 0
    """Updates on a batch whose own backward pass moves the perturbation (Free)."""
    consistency: float = 0.0
    """Weight of the squared distance between the logits before and after the step."""
    consistency_ramp: float = 0.0
    """Share of the updates over which that weight rises from 0."""
    clean_updates: int = 0
    """First updates, in which the share of clean images among the states falls evenly from all to none."""
    radius_ramp: float = 0.0
    """Share of the updates over which the ball and the step grow from nothing to their size."""
    moved_by_update: bool = False
    """The gradient of the update itself moves the perturbation for the next visit; no other pass is made."""
    smoothing: float = 0.0
    """Label smoothing (with the consistency term only)."""
    weight_perturbation: float = 0.0
    """Adversarial weight perturbation (Wu et al. 2020), in units of each weight tensor's norm."""
    perturbed_share: float = 0.5
    """Share of the updates, the last ones, that have it."""

    def __post_init__(self) -> None:
        if self.smoothing and not self.consistency:
            raise ValueError("smoothing is made in the update with the consistency term: set consistency as well")
        if self.consistency and self.moved_by_update:
            raise ValueError("moved_by_update goes without the consistency term: set it to 0")
        if self.smoothing and self.weight_perturbation:
            raise ValueError("smoothing is not made where weights are perturbed: set one of them to 0")


# Learning rate and batch are the best of two to six on the hold-out (results/tuning-digits.json); weights are perturbed
# where that was better (results/options-digits.json).
RIVALS = {
    "Alg. 3, as in App. D": Rival(source="the paper", learning_rate=6e-3, batch=16, states="uniform", steps=None),
    "Alg. 3, to each image's own t": Rival(source="the paper", learning_rate=6e-3, batch=16, states="own", steps=None),
    "PGD-10 with EMA": Rival(
        source="Madry et al. 2018", learning_rate=6e-3, batch=16, ema=0.99, steps=10, weight_perturbation=0.005
    ),
    "N-FGSM": Rival(source="de Jorge et al. 2022", noise=2.0, projection=False),
    "Free, m = 4": Rival(source="Shafahi et al. 2019", batch=16, replays=4),
    "Free, m = 8": Rival(source="Shafahi et al. 2019", replays=8),
    "persistent (ATTA)": Rival(
        source="Zheng et al. 2020",
        learning_rate=5e-3,
        batch=16,
        step=0.5,
        life=40,
        restart=0.03,
        weight_perturbation=0.005,
    ),
    "FGSM-PGI": Rival(
        source="Jia et al. 2022", learning_rate=6e-3, batch=16, life=40, consistency=10.0, weight_perturbation=0.005
    ),
    "persistent, with consistency": Rival(  # chosen on MNIST: results/tuning-mnist.json
        source="ATTA with FGSM-PGI's term, as the preset mnist",
        learning_rate=5e-3,
        batch=16,
        step=0.5,
        life=40,
        restart=0.03,
        consistency=3.0,
        consistency_ramp=0.5,
        clean_updates=200,
    ),
    "one universal perturbation": Rival(source="FGSM-UAP, Pan et al. 2024", batch=16, life=10**9, universal=True),
}


class InMemory:
    """A rival's loop: `update` visits the next batch."""

    def __init__(self, setup: Setup, rival: Rival, *, updates: int) -> None:
        config, self.rival, self.setup = setup.config, rival, setup
        conditioning = "deployed" if rival.states == "last" else "state"
        self.steps = rival.steps or config.attack.steps
        self.process = replace(
            config.attack,
            step=round(min(1.0, rival.step or 2.5 / self.steps) * config.attack.bound),
            noise=round(rival.noise * config.attack.bound),
            project=rival.projection,
            conditioning=conditioning,
        )
        train = replace(
            config.train,
            learning_rate=rival.learning_rate,
            ema=rival.ema,
            weight_perturbation=rival.weight_perturbation,
            perturbed_share=rival.perturbed_share,
            conditioning=conditioning,
            objective=replace(
                config.train.objective, consistency=rival.consistency, consistency_ramp=rival.consistency_ramp
            ),
        )
        robust, planned = setup.build_faster(train), {"total_updates": updates, "seed": config.seed}
        if rival.consistency:
            self.learner = Consistent(robust, train, smoothing=rival.smoothing, **planned)
        else:
            self.learner = Learner(robust, train, **planned)
        self._whole = self.process
        self.images, self.labels = torch.from_numpy(setup.train.images), torch.from_numpy(setup.train.labels)
        self.kept = torch.zeros(self.images.shape, dtype=torch.int16)
        self.shared = torch.zeros(
            2 * rival.batch, *self.images.shape[1:]
        )  # perturbations by place in the batch: Free's
        self.visits = np.zeros(len(self.images), np.int64)
        self.number = 0
        self._batches = self._drawn()

    def update(self) -> None:
        """One update, with the attack before it."""
        chosen = next(self._batches)
        if self.rival.radius_ramp:
            self._grow()
        if self.rival.replays:
            self._free(chosen)
        elif self.rival.moved_by_update:
            self._moved_by_update(chosen)
        elif self.rival.consistency:
            self._consistent(chosen)
        else:
            self._attacked(chosen)
        self.number += 1

    def _grow(self) -> None:
        """The ball of the next update."""
        done = min(1.0, (self.number + 1) / (self.rival.radius_ramp * self.learner.total_updates))
        lengths = {name: max(1, round(done * getattr(self._whole, name))) for name in ("bound", "step", "noise")}
        self.process = replace(self._whole, **lengths)

    def _drawn(self) -> Iterator[Int64[Tensor, " image"]]:
        """Batches of each epoch, in a new random order; with replays each comes so often."""
        epoch, count = 0, round(len(self.images) / self.rival.batch)
        while True:
            order = randomness.permutation(len(self.images), self.setup.config.seed, "rival", epoch)
            for part in np.array_split(order, count):
                yield from [torch.from_numpy(part)] * max(1, self.rival.replays)
            epoch += 1

    def _start(self, chosen: Int64[Tensor, " image"]) -> Int16[Tensor, "image channel height width"]:
        """The perturbations on which a visit goes on."""
        again = self.visits[chosen] % self.rival.life == 0
        again |= randomness.uniform(len(chosen), self.setup.config.seed, "again", self.number) < self.rival.restart
        self.visits[chosen] = np.where(again, 1, self.visits[chosen] + 1)
        rows = self.setup.train.rows[chosen.numpy()]
        noise = draw_start(self.process, self.number, rows, tuple(self.images.shape[1:]))
        return torch.where(torch.from_numpy(again)[:, None, None, None], noise, self.kept[chosen])

    def _attacked(self, chosen: Int64[Tensor, " image"]) -> None:
        """The attack, then an update on what came out."""
        images, labels, count = self.images[chosen], self.labels[chosen], len(chosen)
        steps, start = self.steps, self._start(chosen)
        t = torch.full((count,), steps)
        if self.rival.states != "last":
            t = torch.from_numpy(randomness.integers(1, steps + 1, count, self.setup.config.seed, "t", self.number))
        if self.rival.universal:
            levels = self._universal_step(images, labels, start[:1])
        elif self.rival.states == "own":
            levels = self._to_own(images, labels, start, t)
        else:
            states = attack(self.learner.robust, images, labels, self.process, start, self.process.times(steps)).levels
            levels = states[t, torch.arange(count)]
        clean = self.process.lattice.from_bytes(images)
        if not self.rival.universal:
            self.kept[chosen] = levels - clean
        self.learner.update(self._batch(levels, clean, labels, t))

    def _to_own(self, images: Tensor, labels: Tensor, start: Tensor, t: Int64[Tensor, " image"]) -> Tensor:
        """Attack each image to its own t and no further."""
        levels = self.process.lattice.from_bytes(images) + start
        for step in range(self.steps):
            left = torch.nonzero(t > step)[:, 0]
            if not len(left):
                break
            before = levels[left] - self.process.lattice.from_bytes(images[left])
            times = self.process.times(1, torch.full((len(left),), step))
            moved = attack(self.learner.robust, images[left], labels[left], self.process, before, times)
            levels[left] = moved.levels[-1]
        return levels

    def _universal_step(self, images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        """Move the one perturbation along the sum of the images' gradients; the states are all images with it."""
        process, clean = self.process, self.process.lattice.from_bytes(images)
        one = self.kept[:1] if self.number else noise
        low, high = process.limits(clean)
        gradient, *_ = self._gradient((clean + one).clamp(low, high), clean, labels)
        one = (one + process.step * gradient.sum(0, keepdim=True).sign()).to(torch.int16)
        self.kept[:] = one = one.clamp(-process.bound, process.bound)
        return (clean + one).clamp(low, high)

    def _gradient(self, levels: Tensor, clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lattice, process = self.process.lattice, self.process
        t = torch.full_like(labels, process.steps)
        states, autocast = lattice.to_float(levels), process.autocast(levels.device)
        loss = ATTACK_LOSSES[process.loss]
        return loss_gradient(self.learner.robust, states, lattice.to_float(clean), labels, t, loss, autocast=autocast)

    def _free(self, chosen: Int64[Tensor, " image"]) -> None:
        """An update whose backward pass also moves the perturbation, which the next batch takes over."""
        clean = self.process.lattice.to_float(self.process.lattice.from_bytes(self.images[chosen]))
        radius = self.setup.config.threat.radius
        delta = self.shared[: len(chosen)]
        states = (clean + delta).clamp(0, 1).requires_grad_(True)
        t = torch.full((len(chosen),), self.process.steps)
        self.learner.update(TrainingBatch(states=states, clean=clean, labels=self.labels[chosen], t=t))
        assert states.grad is not None
        self.shared[: len(chosen)] = (delta + radius * states.grad.sign()).clamp(-radius, radius)

    def _moved_by_update(self, chosen: Int64[Tensor, " image"]) -> None:
        """An update on the stored perturbations, whose backward pass also moves them."""
        clean, before = self._begun(chosen)
        lattice, t = self.process.lattice, torch.full((len(chosen),), self.process.steps)
        states = lattice.to_float(before).requires_grad_(True)
        batch = TrainingBatch(states=states, clean=lattice.to_float(clean), labels=self.labels[chosen], t=t)
        self.learner.update(batch)
        assert states.grad is not None
        self._moved(chosen, clean, before, states.grad)

    def _consistent(self, chosen: Int64[Tensor, " image"]) -> None:
        """A step from the stored perturbation, and an update that also brings the logits before and after together."""
        assert isinstance(self.learner, Consistent)
        labels, t = self.labels[chosen], torch.full((len(chosen),), self.process.steps)
        clean, before = self._begun(chosen)
        gradient = self.learner.begin(self.process.lattice.to_float(before), labels)
        self.learner.update(self._batch(self._moved(chosen, clean, before, gradient), clean, labels, t))

    def _begun(self, chosen: Int64[Tensor, " image"]) -> tuple[Tensor, Tensor]:
        """The levels of the images, and those in which a visit begins."""
        clean = self.process.lattice.from_bytes(self.images[chosen])
        return clean, (clean + self._start(chosen)).clamp(*self.process.limits(clean))

    def _moved(self, chosen: Int64[Tensor, " image"], clean: Tensor, before: Tensor, gradient: Tensor) -> Tensor:
        """The levels after a step along a gradient, whose perturbation is kept."""
        levels, _ = advance(before, gradient, clean, self.process, self.process.limits(clean))
        self.kept[chosen] = levels - clean
        return levels

    def _batch(self, levels: Tensor, clean: Tensor, labels: Tensor, t: Tensor) -> TrainingBatch:
        if self.number < self.rival.clean_updates:
            drawn = randomness.uniform(len(levels), self.setup.config.seed, "clean", self.number)
            is_clean = torch.from_numpy(drawn >= self.number / self.rival.clean_updates)
            levels = torch.where(is_clean[:, None, None, None], clean, levels)
        lattice = self.process.lattice
        return TrainingBatch(states=lattice.to_float(levels), clean=lattice.to_float(clean), labels=labels, t=t)
