"""The examples of a round, decoded once, and the batches that its updates train on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.data.splits import Split
from stages.training.schedule import Batch
from stages.trajectories.codec import Segments
from stages.trajectories.generate import clean_levels


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """States to restore, their clean images and labels, and the t of each state."""

    states: Float[Tensor, "batch channel height width"]
    clean: Float[Tensor, "batch channel height width"]
    labels: Int64[Tensor, " batch"]
    t: Int64[Tensor, " batch"]
    starts: Float[Tensor, "batch channel height width"] | None = None
    """The states in which the visits began, for an objective that asks for them."""


class RoundExamples:
    """One state of each segment of a round, in the order of its units, on a device.

    ``starts``: with the state in which its visit began.
    """

    def __init__(
        self, parts: list[Segments], batches: list[Batch], split: Split, device: str = "cpu", *, starts: bool = False
    ) -> None:
        self.lattice = parts[0].process.lattice
        states = np.empty(sum(map(len, parts)), np.int64)
        for batch in batches:
            states[batch.places] = batch.states
        first, decoded = 0, []
        for part in parts:
            decoded.append(_decode(part, split, torch.from_numpy(states[first : first + len(part)]), starts=starts))
            first += len(part)
        columns = [torch.cat(column).to(device) for column in zip(*decoded, strict=True)]
        self.levels, self.clean, self.labels, self.t = columns[:4]
        self.starts = columns[4] if starts else None

    def batches(self, batches: list[Batch]) -> Iterator[TrainingBatch]:
        """The examples of batches of the schedule, whose places go to the device in one piece."""
        places = torch.from_numpy(np.concatenate([batch.places for batch in batches])).to(self.t.device)
        for part in places.split([len(batch.places) for batch in batches]):
            yield TrainingBatch(
                states=self.lattice.to_float(self.levels.index_select(0, part)),
                clean=self.lattice.to_float(self.clean.index_select(0, part)),
                labels=self.labels.index_select(0, part),
                t=self.t.index_select(0, part),
                starts=None if self.starts is None else self.lattice.to_float(self.starts.index_select(0, part)),
            )


def _decode(part: Segments, split: Split, states: Int64[Tensor, " segment"], *, starts: bool) -> list[Tensor]:
    """The levels of a state of each segment (0: the clean image), the clean levels, the labels, and each state's t;
    with ``starts`` the levels of x_0 as well."""
    clean = clean_levels(part, split)
    if starts:
        replayed = part.states(clean)
        levels, begun = replayed[states, torch.arange(len(part))], [replayed[0]]
    else:
        levels, begun = part.states_at(clean, states), []
    levels = torch.where((states == 0)[:, None, None, None], clean, levels)
    t = torch.where(states == 0, 0, part.taken.long() + states)
    return [levels, clean, torch.from_numpy(split.labels[split.positions(part.index.numpy())]), t, *begun]
