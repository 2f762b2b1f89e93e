"""The trainings that explain a defence: each leaves one thing out, with the same number of updates.

They cost more than every other check, so they are given a share of the real training's rounds.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from stages import randomness
from stages.data.augmentation import augment, draw_augmentation
from stages.rap.attack import attack
from stages.rap.norms import draw_start
from stages.rap.robust import RobustClassifier
from stages.training.batches import TrainingBatch
from stages.training.rounds import run_serially
from stages.training.setup import Setup, load_trained

Part = Literal["defence", "adversarial training", "denoising only", "vanilla adversaries"]
PARTS: tuple[Part, ...] = get_args(Part)


class Examples(NamedTuple):
    """Training images of an update, augmented where the recipe does, on the device of the setup."""

    images: UInt8[Tensor, "batch channel height width"]
    labels: Int64[Tensor, " batch"]
    rows: Int64[np.ndarray, " batch"]


States = Callable[[Examples, Tensor, int], Tensor]
"""Levels [batch, channel, height, width] to train on, from examples, the t of each and the number of the update."""


def train_part(
    part: Part, setup: Setup, *, share: float, name: str, progress: Callable[[str], None] = lambda line: None
) -> RobustClassifier:
    """The robust classifier of a training with ``share`` of the setup's rounds, in eval mode on its device.

    "defence" is the setup's own training, "adversarial training" trains the classifier with the adapter, "denoising
    only" gives the adapter noise of the attack's start in place of adversaries, and "vanilla adversaries" gives it
    adversaries of the classifier without it. The first two are kept as the run ``name``. ``progress`` gets a line
    a round or an update.
    """
    rounds = max(1, round(share * setup.config.schedule.rounds))
    config = replace(setup.config, schedule=replace(setup.config.schedule, rounds=rounds))
    config = replace(config, judge=replace(config.judge, images=1, every=rounds))  # its verdicts are not asked for
    if part == "adversarial training":
        config = replace(config, train=replace(config.train, what="both"))
    short = replace(setup, config=config, name=name, keep_versions=False)
    if part in ("defence", "adversarial training"):
        run_serially(short, report=lambda line: progress(f"{part}: round {line['round'] + 1} of {rounds}"))
        return load_trained(short.build(), short.journal.best_weights()[0])
    with config.train.applied():
        states = _noisy(short) if part == "denoising only" else _vanilla(short)
        return _train_on(short, states, lambda line: progress(f"{part}: {line}"))


def _train_on(setup: Setup, states: States, progress: Callable[[str], None]) -> RobustClassifier:
    """The robust classifier after the setup's updates on levels that do not depend on it.

    The images are augmented as those of the defence are, anew in every update.
    """
    learner, config, train = setup.learner(), setup.config, setup.train
    lattice, batch = config.attack.lattice, config.schedule.batch
    for update in range(setup.schedule.updates):
        chosen = randomness.integers(0, len(train), batch, "ablation", config.seed, update)
        t = torch.from_numpy(randomness.integers(1, config.attack.steps + 1, batch, "t", config.seed, update))
        examples = _examples(setup, chosen, update)
        clean = lattice.to_float(lattice.from_bytes(examples.images))
        learner.update(
            TrainingBatch(
                states=lattice.to_float(states(examples, t.to(setup.device), update)),
                clean=clean,
                labels=examples.labels,
                t=t.to(setup.device),
                starts=clean,
            )
        )
        progress(f"update {update + 1} of {setup.schedule.updates}")
    return load_trained(setup.build(), learner.shipped())


def _examples(setup: Setup, chosen: np.ndarray, update: int) -> Examples:
    train = setup.train
    images, rows = torch.from_numpy(train.images[chosen]), train.rows[chosen]
    if setup.config.augment:
        images = augment(images, torch.from_numpy(draw_augmentation(rows, setup.config.seed, "ablation", update)))
    labels = torch.from_numpy(train.labels[chosen])
    return Examples(images.to(setup.device), labels.to(setup.device), rows)


def _noisy(setup: Setup) -> States:
    process = setup.config.attack

    def states(examples: Examples, t: Tensor, update: int) -> Tensor:
        clean = process.lattice.from_bytes(examples.images)
        low, high = process.limits(clean)
        return torch.minimum(torch.maximum(clean + _start(setup, "noise", examples, update), low), high)

    return states


def _vanilla(setup: Setup) -> States:
    """Trajectories against the classifier alone, which does not change, of the images as they were augmented."""
    process = setup.config.attack
    robust = setup.build()
    alone = RobustClassifier(None, robust.classifier, steps=robust.steps, threat=robust.threat).eval()

    def states(examples: Examples, t: Tensor, update: int) -> Tensor:
        start = _start(setup, "vanilla", examples, update)
        levels = attack(alone, examples.images, examples.labels, process, start).levels
        return levels[t, torch.arange(len(t), device=t.device)]

    return states


def _start(setup: Setup, purpose: str, examples: Examples, update: int) -> Tensor:
    seed = randomness.key_seed(purpose, setup.config.seed, update)
    return draw_start(setup.config.attack, seed, examples.rows, tuple(examples.images.shape[1:])).to(setup.device)
