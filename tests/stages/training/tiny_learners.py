"""Learners small enough to update many times in a test, and their batches of digits."""

import copy
from dataclasses import replace

import torch
from tiny_runs import CLASSIFIER, DATA, TRAIN

from stages.nets.unet import UNet, UNetConfig
from stages.rap.objective import ObjectiveConfig
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.training.adapter import Learner, TrainConfig
from stages.training.batches import TrainingBatch

IMAGES = torch.from_numpy(DATA.train.images).float() / 255
LABELS = torch.from_numpy(DATA.train.labels)


def learner_of(config: TrainConfig = TRAIN, *, updates: int = 40, adapter: bool = True, seed: int = 0) -> Learner:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = UNet(UNetConfig(width=8, multipliers=(1,)), 1) if adapter else None
    robust = RobustClassifier(net, copy.deepcopy(CLASSIFIER), steps=4, threat=ThreatModel(radius=0.1))
    return Learner(robust, config, total_updates=updates, seed=seed)


def batch_of(number: int, size: int = 16) -> TrainingBatch:
    """Noisy images; the same for the same number."""
    generator = torch.Generator().manual_seed(number)
    chosen = torch.randperm(len(IMAGES), generator=generator)[:size]
    clean = IMAGES[chosen]
    states = (clean + 0.2 * torch.randn(clean.shape, generator=generator).sign()).clamp(0, 1)
    t = torch.randint(1, 5, (size,), generator=generator)
    return TrainingBatch(states=states, clean=clean, labels=LABELS[chosen], t=t, starts=(states + clean) / 2)


def trained(learner: Learner, numbers: range) -> list[dict[str, float]]:
    for number in numbers:
        learner.update(batch_of(number))
    return learner.measured()


def updated(learner: Learner, batch: TrainingBatch) -> dict[str, float]:
    """What one update measured."""
    learner.update(batch)
    (figures,) = learner.measured()
    return figures


def copied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in weights.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


CONFIGS = {
    "adapter": TRAIN,
    "adapter with average": replace(TRAIN, ema=0.9),
    "adapter with SGD": replace(TRAIN, optimizer="sgd", clip_norm=1.0, weight_decay=1e-3),
    "classifier": replace(TRAIN, what="classifier"),
    "both with average": replace(TRAIN, what="both", ema=0.9),
    "KL": replace(TRAIN, objective=ObjectiveConfig(kl=3.0)),
    "consistency": replace(
        TRAIN, objective=ObjectiveConfig(consistency=3.0, consistency_ramp=0.5, consistency_share=0.5)
    ),
    "weight perturbation": replace(TRAIN, what="both", weight_perturbation=0.05, perturbed_share=0.95),
    "bfloat16": replace(TRAIN, precision="bfloat16"),
}
