"""Units over real digits and a small model that they attack; counts the attacks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stages.data.datasets import DataConfig, load_data
from stages.rap.attack import AttackConfig, AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.trajectories.cache import TrajectoryCache
from stages.trajectories.generate import Unit, generate_unit
from stages.trajectories.ledger import LedgerRow

SPLIT = load_data(DataConfig(name="digits", train_images=40)).train
THREATS = {"Linf": ThreatModel(norm="Linf", radius=0.2), "L2": ThreatModel(norm="L2", radius=1.0)}


class Shifting(nn.Module):
    """An adapter that answers each t otherwise; counts its questions."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, images: Tensor, t: Tensor) -> Tensor:
        self.asked += 1
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
        version=0,
        weights="weights",
        model="model",
        data=SPLIT.fingerprint,
        process=process,
        steps=process.steps,
        start_seed=2**64 - 5,
        index=SPLIT.rows[first : first + count][::-1].copy(),
        made=np.zeros(count, np.int64),
        augmentation=None,
        parents=(),
        parent=np.full(count, -1),
        parent_position=np.full(count, -1),
    )
    return replace(unit, **changes)  # pyright: ignore[reportArgumentType]


def warm_unit(before: Unit, *, restarted: int = 3, **changes: object) -> Unit:
    """A unit whose first examples start from noise and whose others go on with a unit of the same images."""
    count = len(before.index)
    order = np.random.default_rng(0).permutation(count)
    going = np.arange(count) >= restarted
    return replace(
        before,
        round=before.round + 1,
        index=before.index[order],
        made=np.where(going, before.made[order] + before.steps, 0),
        parents=(before.fingerprint,),
        parent=np.where(going, 0, -1),
        parent_position=np.where(going, order, -1),
        **changes,  # pyright: ignore[reportArgumentType]
    )


def make(unit: Unit, root: Path, model: RobustClassifier | None = None) -> LedgerRow:
    return generate_unit(unit, model or small_model(), SPLIT, TrajectoryCache(root))


def files_below(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
