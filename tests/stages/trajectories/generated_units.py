"""Units over real digits and a small model that they attack."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stages.data.datasets import DataConfig, load_data
from stages.rap.process import AttackConfig, AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.storage import Storage
from stages.trajectories.generate import Unit, generate_unit
from stages.trajectories.shards import Shard

SPLIT = load_data(DataConfig(name="digits", train_images=40)).train
THREATS = {"Linf": ThreatModel(norm="Linf", radius=0.2), "L2": ThreatModel(norm="L2", radius=1.0)}


class Shifting(nn.Module):
    """An adapter that answers each t otherwise."""

    def forward(self, images: Tensor, t: Tensor) -> Tensor:
        return images + 0.1 * images**2 * torch.sin(t.float())[:, None, None, None]


def small_model() -> RobustClassifier:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
    return RobustClassifier(Shifting(), layers, steps=6, threat=THREATS["Linf"]).eval().requires_grad_(False)


def process_of(norm: str = "Linf", **options: object) -> AttackProcess:
    return AttackConfig(**{"steps": 6, "batch": 5, **options}).process(THREATS[norm])  # pyright: ignore


def unit_of(process: AttackProcess | None = None, *, first: int = 0, count: int = 12, **changes: object) -> Unit:
    """A fresh unit of whole trajectories over images of the split."""
    process = process or process_of()
    unit = Unit(
        round=0,
        number=0,
        cohort=0,
        visit=0,
        version=0,
        weights="weights",
        model="model",
        data=SPLIT.fingerprint,
        process=process,
        steps=process.steps,
        start_seed=2**64 - 5,
        index=SPLIT.rows[first : first + count].copy(),
        taken=np.zeros(count, np.int64),
        augmentation=None,
        parent="",
    )
    return replace(unit, **changes)  # pyright: ignore[reportArgumentType]


def next_unit(before: Unit, *, restarted: int = 3, **changes: object) -> Unit:
    """The next visit of a unit's cohort: the first examples start from noise, the others go on."""
    on = np.arange(len(before.index)) >= restarted
    return replace(
        before,
        **{
            "round": before.round + 1,
            "visit": before.visit + 1,
            "start_seed": 77,
            "taken": np.where(on, before.taken + before.steps, 0),
            "parent": before.fingerprint,
            **changes,
        },  # pyright: ignore[reportArgumentType]
    )


def make(unit: Unit, root: Path, parent: Shard | None = None) -> Shard:
    model = small_model()
    return generate_unit(unit, lambda: model, SPLIT, Storage.at(root), parent=parent and parent.segments)
