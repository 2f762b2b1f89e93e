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

    def generate(
        self, unit: Unit, refs: tuple[Ref[Setup], Ref[dict[str, np.ndarray]]]
    ) -> tuple[LedgerRow, bool, tuple[str, ...]]:
        """The row of the unit's committed shard, whether it was made now, and what was made again for it. ``refs`` hold
        setup and weights."""
        setup, weights = refs
        made = self._begun(setup).shard(unit, lambda: tensors(weights.get()))
        return made.shard.row, made.is_new, made.repaired

    def find(self, name: str, setup: Ref[Setup]) -> tuple[LedgerRow, tuple[str, ...]]:
        """The row of a shard of an earlier round, and what was made again for it."""
        found = self._begun(setup).find(name)
        return found.shard.row, found.repaired

    def _begun(self, setup: Ref[Setup]) -> Generator:
        with self._starting:
            if self._generator is None:
                self._generator = Generator(setup.get())
        return self._generator


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Weights from arrays in shared memory, which are read-only: as copies of their own."""
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
