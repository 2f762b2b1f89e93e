"""Attack processes for the eight pictures, and the attack on them."""

import numpy as np
from attacked_models import pictures, robust
from torch import Tensor

from stages.rap.attack import Trajectory, attack
from stages.rap.norms import draw_start
from stages.rap.process import AttackConfig, AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel

THREATS = {"Linf": ThreatModel(norm="Linf", radius=0.2), "L2": ThreatModel(norm="L2", radius=1.0)}
STARTS = ("uniform", "gaussian", "none")
ROWS = np.arange(8) * 11 + 3


def process_of(norm: str = "Linf", **options: object) -> AttackProcess:
    return AttackConfig(**{"steps": 6, **options}).process(THREATS[norm])  # pyright: ignore[reportArgumentType]


def start_of(process: AttackProcess, *, seed: int = 5) -> Tensor:
    return draw_start(process, seed, ROWS, (1, 8, 8))


def run(process: AttackProcess, model: RobustClassifier | None = None, **options: object) -> Trajectory:
    """The attack on the eight pictures, from their classes as the model sees them."""
    model = model or robust(steps=process.steps)
    labels = model(pictures().float() / 255).argmax(1)
    given = {"start": start_of(process), **options}
    return attack(model, pictures(), labels, process, **given)  # pyright: ignore[reportArgumentType]
