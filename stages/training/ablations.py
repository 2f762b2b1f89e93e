"""The trainings that explain a defence: each leaves one thing out, with the same number of updates.

They cost more than every other check, so they are given a share of the real training's rounds.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from stages import randomness
from stages.rap.attack import Trajectory, attack, draw_start
from stages.rap.robust import RobustClassifier
from stages.threads import cpu_threads
from stages.training.replay import TrainingBatch
from stages.training.rounds import Setup, load_trained, run_serially

Part = Literal["defence", "adversarial training", "denoising only", "vanilla adversaries"]
PARTS: tuple[Part, ...] = get_args(Part)


def train_part(
    part: Part, setup: Setup, *, share: float, run: Path, progress: Callable[[str], None] = lambda line: None
) -> RobustClassifier:
    """The robust classifier of a training with ``share`` of the setup's rounds, in eval mode on its device.

    "defence" is the setup's own training, "adversarial training" trains the classifier with the adapter, "denoising
    only" gives the adapter noise of the attack's start in place of adversaries, and "vanilla adversaries" gives it
    adversaries of the classifier without it. The first two keep their journal below ``run``. ``progress`` gets a line
    a round or an update.
    """
    rounds = max(1, round(share * setup.config.schedule.rounds))
    config = replace(setup.config, schedule=replace(setup.config.schedule, rounds=rounds))
    config = replace(config, judge=replace(config.judge, images=1, every=rounds))  # its verdicts are not asked for
    if part == "adversarial training":
        config = replace(config, train=replace(config.train, what="both"))
    short = replace(setup, config=config, run=run)
    if part in ("defence", "adversarial training"):
        run_serially(short, report=lambda line: progress(f"{part}: round {line['round'] + 1} of {rounds}"))
        return load_trained(short.build(), short.versions.load(rounds))
    with cpu_threads(config.train.threads):
        states = _noisy(short) if part == "denoising only" else _vanilla(short)
        return _train_on(short, states, lambda line: progress(f"{part}: {line}"))


def _train_on(
    setup: Setup, states: Callable[[np.ndarray, int], Tensor], progress: Callable[[str], None]
) -> RobustClassifier:
    """The robust classifier after the setup's updates on levels that do not depend on it."""
    learner, config = setup.learner(), setup.config
    lattice, batch = config.attack.lattice, config.schedule.batch
    images, labels = torch.from_numpy(setup.train.images), torch.from_numpy(setup.train.labels)
    for update in range(setup.schedule.updates):
        chosen = randomness.integers(0, len(images), batch, "ablation", config.seed, update)
        t = torch.from_numpy(randomness.integers(1, config.attack.steps + 1, batch, "t", config.seed, update))
        everything = torch.ones(batch, dtype=torch.bool, device=setup.device)
        learner.update(
            TrainingBatch(
                states=lattice.to_float(states(chosen, update)).to(setup.device),
                clean=lattice.to_float(lattice.from_bytes(images[chosen])).to(setup.device),
                labels=labels[chosen].to(setup.device),
                t=t.to(setup.device),
                fresh=everything,
                last=everything,
            )
        )
        progress(f"update {update + 1} of {setup.schedule.updates}")
    return load_trained(setup.build(), learner.shipped())


def _noisy(setup: Setup) -> Callable[[np.ndarray, int], Tensor]:
    process, train = setup.config.attack, setup.train
    clean = process.lattice.from_bytes(torch.from_numpy(train.images))
    low, high = process.limits(clean)

    def states(chosen: np.ndarray, update: int) -> Tensor:
        seed = randomness.key_seed("noise", setup.config.seed, update)
        noise = draw_start(process, seed, train.rows[chosen], tuple(clean.shape[1:]))
        return torch.minimum(torch.maximum(clean[chosen] + noise, low[chosen]), high[chosen])

    return states


def _vanilla(setup: Setup) -> Callable[[np.ndarray, int], Tensor]:
    """Whole trajectories against the classifier alone, made once: it does not change."""
    process, train = setup.config.attack, setup.train
    alone = RobustClassifier(None, setup.build().classifier, steps=process.steps).eval().to(setup.device)
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    start = draw_start(process, randomness.key_seed("vanilla", setup.config.seed), train.rows, images.shape[1:])
    pieces = []
    for first in range(0, len(images), process.batch):
        part = slice(first, first + process.batch)
        image, label, noise = (each[part].to(setup.device) for each in (images, labels, start))
        pieces.append(attack(alone, image, label, process, noise).cpu())
    levels = Trajectory.join(pieces).levels

    def states(chosen: np.ndarray, update: int) -> Tensor:
        t = randomness.integers(1, process.steps + 1, len(chosen), "t", setup.config.seed, update)
        return levels[torch.from_numpy(t), torch.from_numpy(chosen)]

    return states
