"""The replay window: the segments of the last rounds, in memory, from which every batch is made."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stages.data.augmentation import augment
from stages.data.splits import Split
from stages.training.schedule import Batch
from stages.trajectories.codec import Segments


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """States to restore, their clean images and labels, the t of each state, and what is fresh or a last state."""

    states: Float[Tensor, "batch channel height width"]
    clean: Float[Tensor, "batch channel height width"]
    labels: Int64[Tensor, " batch"]
    t: Int64[Tensor, " batch"]
    fresh: Bool[Tensor, " batch"]
    last: Bool[Tensor, " batch"]


class ReplayWindow:
    """Segments by round. All rounds have the same number, in slots, so a batch is one look-up."""

    def __init__(self, split: Split, device: str = "cpu") -> None:
        self.images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.split, self.device = split, device
        self._rounds: dict[int, Segments] = {}
        self._joined: Segments | None = None
        self._first: dict[int, int] = {}

    def keep(self, rounds: range) -> None:
        """Forget the rounds outside a range."""
        self._rounds = {number: self._rounds[number] for number in self._rounds if number in rounds}
        self._joined = None

    def __contains__(self, number: int) -> bool:
        return number in self._rounds

    def add(self, number: int, shards: list[Segments]) -> None:
        """Take in the shards of a round, in order of unit."""
        self._rounds[number] = Segments.join(shards).to(self.device)
        self._joined = None

    def batch(self, batch: Batch) -> TrainingBatch:
        """The states, images and labels of a batch of the schedule."""
        segments = self._all()
        places = np.array([self._first[int(number)] for number in batch.rounds]) + batch.slots
        rows, states = torch.from_numpy(places).to(self.device), torch.from_numpy(batch.states).to(self.device)
        positions = torch.from_numpy(self.split.positions(segments.index[rows].cpu().numpy())).to(self.device)
        images = self.images[positions]
        if segments.augmentation is not None:
            images = augment(images, segments.augmentation[rows])
        lattice = segments.process.lattice
        clean = lattice.from_bytes(images)
        levels = torch.where((states == 0)[:, None, None, None], clean, segments.states_at(clean, states, rows))
        return TrainingBatch(
            states=lattice.to_float(levels),
            clean=lattice.to_float(clean),
            labels=self.labels[positions],
            t=torch.where(states == 0, 0, segments.made[rows].long() + states),
            fresh=torch.from_numpy(batch.fresh).to(self.device),
            last=states == segments.steps,
        )

    def _all(self) -> Segments:
        if self._joined is None:
            self._first, count = {}, 0
            for number, segments in self._rounds.items():
                self._first[number] = count
                count += len(segments)
            self._joined = Segments.join(list(self._rounds.values()))
        return self._joined
