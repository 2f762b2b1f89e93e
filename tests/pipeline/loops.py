"""A loop small enough to run many times, what is compared of it, and a disk that it fills."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.placement import LoopWorkers
from stages.data.datasets import DataConfig, load_data
from stages.evaluation.judge import JudgeConfig
from stages.nets.cnn import CNN
from stages.nets.unet import UNetConfig
from stages.rap.process import AttackConfig
from stages.rap.threat import ThreatModel
from stages.storage import Storage
from stages.training.adapter import TrainConfig
from stages.training.schedule import ScheduleConfig
from stages.training.setup import LoopConfig, Setup
from stages.trajectories.archive import unpack
from stages.trajectories.shards import shard_key

THREAT = ThreatModel(norm="Linf", radius=0.2)
ROUNDS = 6


def loop_config(overlap_rounds: int) -> LoopConfig:
    return LoopConfig(
        threat=THREAT,
        attack=AttackConfig(steps=4, batch=16).process(THREAT),
        adapter=UNetConfig(width=8, multipliers=(1, 2)),
        schedule=ScheduleConfig(
            rounds=ROUNDS,
            cohort_images=16,
            round_cohorts=2,
            batch=16,
            visit_steps=2,
            life=3,
            restart=0.1,
            overlap_rounds=overlap_rounds,  # pyright: ignore[reportArgumentType]
        ),
        train=TrainConfig(learning_rate=1e-3, warmup_updates=2, ema=0.9),
        judge=JudgeConfig(images=16, every=3),
        checkpoint_rounds=2,
    )


def setups() -> Callable[..., Setup]:
    """What makes a setup below a directory, the same every time but for its paths and its overlap."""
    data = load_data(DataConfig(name="digits", train_images=96))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = CNN(1, 8, 10, data.mean, data.std).eval()

    def make(root: Path | str, overlap_rounds: int = 1) -> Setup:
        return Setup(
            config=loop_config(overlap_rounds),
            train=data.train,
            holdout=data.holdout,
            classifier=classifier,
            classifier_fingerprint="untrained",
            root=Storage.at(root),
            name="runs/run",
        )

    return make


def longer(setup: Setup, rounds: int, trainers: int = 1) -> Setup:
    """The same loop of so many rounds, and train workers."""
    schedule, train = replace(setup.config.schedule, rounds=rounds), replace(setup.config.train, workers=trainers)
    return replace(setup, config=replace(setup.config, schedule=schedule, train=train))


def loop_workers(generators: int) -> LoopWorkers:
    return LoopWorkers(generators=generators, generator_cpus=0.5, generator_gpus=0, trainer_cpus=0.5, trainer_gpus=0)


def published(setup: Setup) -> dict[str, bytes]:
    """Every version's weights file, byte for byte."""
    versions = setup.run.below("versions")
    return {name.removesuffix(".safetensors"): versions.get(name) for name in versions.names()}


def shards_of(setup: Setup) -> dict[str, dict[str, bytes]]:
    """The arrays of every shard below the root: all but where and when it was made."""
    names = [name.removesuffix(".zarr.zip") for name in setup.root.names("trajectories")]
    arrays = {name: unpack(setup.root.get(shard_key(name)))[0] for name in names}
    return {name: {key: array.tobytes() for key, array in found.items()} for name, found in arrays.items()}


def trained_lines(setup: Setup) -> list[dict]:
    """The lines of metrics without what depends on time and place."""
    changing = ("seconds", "waiting", "attack_steps_per_second", "worker", "bytes")
    return [{name: value for name, value in line.items() if name not in changing} for line in setup.journal.lines()]


@dataclass(frozen=True)
class SmallDisk(Storage):
    """A directory on a disk that is full once so many bytes are written, for every process to which it is sent."""

    room: int = 0

    def below(self, prefix: str) -> "SmallDisk":
        return replace(self, prefix=super().below(prefix).prefix)

    def put(self, key: str, content: bytes) -> None:
        used = sum(each.bytes for each in Storage.at(self.root).entries())
        if used + len(content) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.location(key))
        super().put(key, content)
