"""A loop small enough to run many times, and what is compared of it."""

from pipeline.workers import LoopWorkers
from stages.evaluation.judge import JudgeConfig
from stages.nets.unet import UNetConfig
from stages.rap.attack import AttackConfig
from stages.rap.threat import ThreatModel
from stages.training.adapter import TrainConfig
from stages.training.rounds import LoopConfig, Setup
from stages.training.schedule import ScheduleConfig

THREAT = ThreatModel(norm="Linf", radius=0.2)
ROUNDS = 6


def loop_config(overlap_rounds: int) -> LoopConfig:
    return LoopConfig(
        threat=THREAT,
        attack=AttackConfig(steps=4, batch=16).process(THREAT),
        adapter=UNetConfig(width=8, multipliers=(1, 2)),
        schedule=ScheduleConfig(
            rounds=ROUNDS,
            examples=32,
            unit_examples=16,
            batch=16,
            segment_steps=2,
            replay_rounds=3,
            overlap_rounds=overlap_rounds,  # pyright: ignore[reportArgumentType]
        ),
        train=TrainConfig(learning_rate=1e-3, warmup_updates=2, ema=0.9),
        judge=JudgeConfig(images=16, every=3),
        checkpoint_rounds=2,
    )


def loop_workers(generators: int) -> LoopWorkers:
    return LoopWorkers(generators=generators, generator_cpus=0.5, generator_gpus=0, trainer_cpus=0.5, trainer_gpus=0)


def published(setup: Setup) -> dict[str, bytes]:
    """Every version's weights file, byte for byte."""
    files = sorted(setup.versions.directory.glob("*/weights.safetensors"))
    return {file.parent.name: file.read_bytes() for file in files}


def trained_lines(setup: Setup) -> list[dict]:
    """The lines of metrics.jsonl without what depends on time and place."""
    changing = ("seconds", "waiting", "attack_steps_per_second", "worker")
    return [{name: value for name, value in line.items() if name not in changing} for line in setup.journal.lines()]
