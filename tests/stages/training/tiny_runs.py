"""Loops small enough to run many times in a test, on real digits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stages.data.datasets import DataConfig, load_data
from stages.evaluation.judge import JudgeConfig
from stages.nets.unet import UNetConfig
from stages.numerics import Arithmetic
from stages.rap.process import AttackConfig
from stages.rap.threat import ThreatModel
from stages.storage import Storage
from stages.training.adapter import TrainConfig
from stages.training.schedule import ScheduleConfig
from stages.training.setup import LoopConfig, Setup
from stages.trajectories.archive import unpack
from stages.trajectories.shards import shard_key

THREATS = {"Linf": ThreatModel(norm="Linf", radius=0.2), "L2": ThreatModel(norm="L2", radius=1.0)}
DATA = load_data(DataConfig(name="digits", train_images=96, holdout_images=32))
SCHEDULE = ScheduleConfig(
    rounds=6, cohort_images=16, round_cohorts=2, batch=16, visit_steps=2, life=3, restart=0.2, max_lag_updates=20
)
TRAIN = TrainConfig(learning_rate=2e-3, warmup_updates=4)


class Small(nn.Module):
    """A classifier of digits with batch norm and dropout, whose training mode therefore shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(2 * images - 1)


def trained_classifier() -> Small:
    """Half a second of plain training on the training split; most of it is right, and equal in every process."""
    with torch.random.fork_rng(), Arithmetic().applied():
        torch.manual_seed(0)
        classifier = Small()
        optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
        images, labels = torch.from_numpy(DATA.train.images).float() / 255, torch.from_numpy(DATA.train.labels)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(images), labels).backward()
            optimizer.step()
    return classifier.eval().requires_grad_(False)


CLASSIFIER = trained_classifier()


def loop_config(norm: str = "Linf", **changes: object) -> LoopConfig:
    threat = THREATS[norm]
    config = LoopConfig(
        threat=threat,
        attack=AttackConfig(steps=4, batch=16).process(threat),
        adapter=UNetConfig(width=8, multipliers=(1,)),
        schedule=SCHEDULE,
        train=TRAIN,
        judge=JudgeConfig(images=16, every=2),
        checkpoint_rounds=2,
    )
    return replace(config, **changes)  # pyright: ignore[reportArgumentType]


CONFIGS = {
    "adapter, overlap 1": loop_config(train=replace(TRAIN, ema=0.9)),
    "adapter, overlap 0": loop_config(schedule=replace(SCHEDULE, overlap_rounds=0)),
    "L2, augmented": loop_config("L2", augment=True),
    "classifier alone": loop_config(train=replace(TRAIN, what="classifier")),
    "both, every visit from noise": loop_config(
        train=replace(TRAIN, what="both"), schedule=replace(SCHEDULE, rounds=3, life=1)
    ),
}


def setup_of(root: Path | str, config: LoopConfig | None = None, *, name: str = "run", **changes: object) -> Setup:
    setup = Setup(
        config=config or loop_config(),
        train=DATA.train,
        holdout=DATA.holdout,
        classifier=CLASSIFIER,
        classifier_fingerprint="small",
        root=Storage.at(root),
        name=f"runs/{name}",
    )
    return replace(setup, **changes)  # pyright: ignore[reportArgumentType]


def published(setup: Setup) -> dict[str, bytes]:
    """Every version's weights file, byte for byte."""
    return {
        name.removesuffix(".safetensors"): setup.run.get(f"versions/{name}") for name in setup.run.names("versions")
    }


def shards_of(setup: Setup) -> dict[str, list[np.ndarray]]:
    """The arrays of every shard below the root: all but where and when it was made."""
    names = [name.removesuffix(".zarr.zip") for name in setup.root.names("trajectories")]
    return {name: list(unpack(setup.root.get(shard_key(name)))[0].values()) for name in names}


def same_shards(one: Setup, other: Setup) -> bool:
    """Whether two roots hold the same shards, but for where and when they were made."""
    ours, theirs = shards_of(one), shards_of(other)
    return ours.keys() == theirs.keys() and all(
        np.array_equal(a, b) for name in ours for a, b in zip(ours[name], theirs[name], strict=True)
    )


def after(questions: int) -> Callable[[], bool]:
    """A `stopped` that says yes from its n-th question on."""
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > questions

    return stopped


def without_times(line: dict) -> dict:
    # a shard's own row says when it was made, in more or fewer digits
    changing = ("seconds", "waiting", "attack_steps_per_second", "worker", "bytes")
    return {name: value for name, value in line.items() if name not in changing}
