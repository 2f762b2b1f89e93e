"""What a generator actor does, apart from the loop that feeds it: its process imports no Ray Train."""

import threading

import numpy as np
import torch
from torch import Tensor

from cluster.refs import Ref
from stages.training.generator import Generator
from stages.training.setup import Setup
from stages.trajectories.generate import Unit
from stages.trajectories.shards import LedgerRow

AT_ONCE = 2  # calls of an actor: while one attacks, the other reads, packs, checks and writes


class GeneratorWorker:
    """A generator actor: it keeps the loop's setup and the weights of the last version that it attacked."""

    def __init__(self) -> None:
        self._generator: Generator | None = None
        self._starting = threading.Lock()

    def generate(self, unit: Unit, refs: tuple[Ref[Setup], Ref[dict[str, np.ndarray]]]) -> tuple[LedgerRow, bool]:
        """The row of the unit's committed shard, and whether it was made now. ``refs`` hold setup and weights."""
        setup, weights = refs
        with self._starting:
            if self._generator is None:
                self._generator = Generator(setup.get())
        made = self._generator.shard(unit, lambda: tensors(weights.get()))
        return made.shard.row, made.is_new


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Weights from arrays in shared memory, which are read-only: as copies of their own."""
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
