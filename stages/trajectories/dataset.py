"""Stored trajectories as a torch data set: clean images with what attacks made of them, for whoever wants them.

data = TrajectoryDataset("s3://bucket/rap", run="digits-51b1f066", rounds=range(100, 120), state="last")
image, state, label, row = data[0]
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int16, Int64
from torch import Tensor
from torch.utils.data import Dataset

from stages.data.datasets import DataConfig, load_data
from stages.data.formats import DataError
from stages.data.splits import Split
from stages.rap.threat import Lattice
from stages.settings import checked, with_tuples
from stages.storage import Storage
from stages.trajectories.generate import clean_levels
from stages.trajectories.ledger import FOLDER, Ledger
from stages.trajectories.shards import read_shard

COLUMNS = ["fingerprint", "round", "unit", "cohort", "visit", "version", "n", "k", "data", "bytes"]
RECENT = 16  # decoded shards that are kept: reading in order decodes each once


class Example(NamedTuple):
    """A segment's clean image, state, label, and the row of its image in the data set."""

    image: Float[Tensor, "channel height width"]
    state: Float[Tensor, "*states channel height width"]
    label: int
    row: int


@dataclass(frozen=True, eq=False)
class Decoded:
    """A shard's segments: levels of the images as they were attacked and of the asked states, labels and rows."""

    lattice: Lattice
    clean: Int16[Tensor, "segment channel height width"]
    states: Int16[Tensor, "segment *states channel height width"]
    labels: Int64[np.ndarray, " segment"]
    rows: Int64[np.ndarray, " segment"]


class TrajectoryDataset(Dataset[Example]):
    """The segments on which a run has trained, in order of round and unit.

    An item is ``(image, state, label, row)``: the clean image as it was attacked (augmented, where the run does that)
    and the state, both float32 in [0, 1] and bit for bit what the model was given. ``state`` is a number t of
    0 .. k, counted from the start of the visit, "last" (k), or "all", which gives [k + 1, C, H, W]. Where only part
    of a run is wanted: ``rounds``; ``classes``, by label; ``success``, by whether the attacked weights misclassified
    the state (for "last", k and "all": state k - 1, the last that was attacked; what it became was trained on only).
    The last two read every shard once, when the data set is made.

    ``root`` is the run's, a directory or a URL. The shards hold perturbations; the images are those of the run's data
    set, or ``images``: a split that holds them, or a function that loads one once the rest makes sense, such as
    `training_images` with another folder.

    Raises ValueError for a run that is not there, a state that its segments do not have, or other images than the
    run's; when read, ShardError for a shard that is missing or damaged.
    """

    def __init__(
        self,
        root: str | Path | Storage,
        *,
        run: str,
        rounds: range | None = None,
        state: int | str = "last",
        success: bool | None = None,
        classes: Sequence[int] | None = None,
        images: Split | Callable[[], Split] | None = None,
    ) -> None:
        self.storage, self.state = Storage.at(root), state
        checked(rounds, range | None, "rounds")
        checked(success, bool | None, "success")
        checked(list(classes) if isinstance(classes, range) else classes, tuple[int, ...] | None, "classes")
        if rounds is not None and rounds.step != 1:
            raise ValueError(f"rounds is {rounds}; give a range without a step")
        batches = list(Ledger(self.storage, run).query(rounds, columns=COLUMNS))
        self.shards = pa.Table.from_batches(batches) if batches else pa.table({name: [] for name in COLUMNS})
        if not len(self.shards):
            raise ValueError(_nothing(self.storage, run, rounds))
        self._check_state(state)
        images = partial(training_images, self.storage, run) if images is None else images
        self.split = images if isinstance(images, Split) else images()
        theirs = set(self.shards["data"].to_pylist())
        if theirs != {self.split.fingerprint}:
            raise ValueError(
                f"run {run} attacked the images {', '.join(theirs)}, not {self.split.fingerprint}: give the run's own "
                "training split by images"
            )
        self._names = self.shards["fingerprint"].to_numpy().astype("S")
        self._ends = np.cumsum(self.shards["n"].to_numpy())
        self._recent: dict[int, Decoded] = {}
        self._chosen: np.ndarray | None = None
        if success is not None or classes is not None:
            self._chosen = np.concatenate(
                [self._first(number) + self._fitting(number, success, classes) for number in range(len(self.shards))]
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._chosen is None else len(self._chosen)

    def __iter__(self) -> Iterator[Example]:
        return (self[item] for item in range(len(self)))

    def __getitem__(self, item: int) -> Example:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[Example]:
        """Several items, for which each shard is decoded once; a DataLoader asks for its batches so."""
        numbers = np.asarray(items, np.int64)
        if len(numbers) and not -len(self) <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"items {numbers.min()} to {numbers.max()} were asked for; there are {len(self)}")
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        flat, shards = self._flat(numbers), self.shard_of(numbers)
        found: list[Example] = [None] * len(flat)  # pyright: ignore[reportAssignmentType]
        for shard in np.unique(shards).tolist():
            members = np.flatnonzero(shards == shard)
            decoded, positions = self._decoded(shard), flat[members] - self._first(shard)
            clean, states = (
                decoded.lattice.to_float(levels[torch.from_numpy(positions)])
                for levels in (decoded.clean, decoded.states)
            )
            for place, position, image, state in zip(members.tolist(), positions.tolist(), clean, states, strict=True):
                label, row = int(decoded.labels[position]), int(decoded.rows[position])
                found[place] = Example(image, state, label, row)
        return found

    def shard_of(self, items: Sequence[int] | np.ndarray) -> Int64[np.ndarray, " item"]:
        """For each item its row of ``shards``, which names round, cohort, visit and version."""
        return np.searchsorted(self._ends, self._flat(items), side="right")

    def _flat(self, items: Sequence[int] | np.ndarray) -> Int64[np.ndarray, " item"]:
        """For each item its number among all segments of the shards."""
        numbers = np.asarray(items, np.int64)
        return numbers if self._chosen is None else self._chosen[numbers]

    def _first(self, shard: int) -> int:
        return int(self._ends[shard - 1]) if shard else 0

    def _decoded(self, number: int) -> Decoded:
        """A shard, kept for a while."""
        known = self._recent.pop(number, None)
        if known is None:
            segments = read_shard(self.storage, self._names[number].decode()).segments
            clean, rows = clean_levels(segments, self.split), segments.index.numpy()
            if self.state == "all":
                states = segments.states(clean).transpose(0, 1)
            else:
                t = segments.steps if isinstance(self.state, str) else self.state
                states = segments.states_at(clean, torch.full((len(segments),), t))
            known = Decoded(segments.process.lattice, clean, states, self._labels(rows), rows)
        self._recent[number] = known  # the last one asked for goes last
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]
        return known

    def _fitting(self, number: int, success: bool | None, classes: Sequence[int] | None) -> np.ndarray:
        """Positions in a shard of what fits the filters."""
        segments = read_shard(self.storage, self._names[number].decode()).segments
        fits = np.ones(len(segments), bool)
        if success is not None:
            assert segments.success is not None  # generation writes it
            t = segments.steps - 1 if isinstance(self.state, str) else min(self.state, segments.steps - 1)
            fits &= segments.success[t].numpy() == success
        if classes is not None:
            fits &= np.isin(self._labels(segments.index.numpy()), list(classes))
        return np.flatnonzero(fits)

    def _labels(self, rows: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        return self.split.labels[self.split.positions(rows)]

    def _check_state(self, state: int | str) -> None:
        steps = self.shards["k"].to_numpy()
        if isinstance(state, int) and not isinstance(state, bool):
            if not 0 <= state <= steps.min():
                raise ValueError(f"state is {state}; these segments have states 0 to {steps.min()}")
        elif state not in ("last", "all"):
            raise ValueError(f"state is {state!r}; give a number, 'last' or 'all'")


def _nothing(storage: Storage, run: str, rounds: range | None) -> str:
    known = storage.names("runs")
    if run not in storage.names(FOLDER):
        return f"no run {run!r} has trained on anything below {storage}; there are: {', '.join(known) or 'none'}"
    last = Ledger(storage, run).rounds
    return f"run {run} has written down rounds 0 to {last - 1}, and none of {rounds}"


def training_images(storage: Storage, run: str, *, data_root: str | None = None, data_download: bool = False) -> Split:
    """The training images of a run's recipe, below ``data_root`` (as --data.root), where ``data_download`` fetches what
    is absent. Raises DataError where they are not there, ValueError for a run that is not."""
    content = storage.find(f"runs/{run}/recipe.json")
    if content is None:
        raise ValueError(f"{storage.location(f'runs/{run}/recipe.json')} is not there: give the run's training images")
    named = with_tuples(json.loads(content)["recipe"]["data"])
    try:
        return load_data(DataConfig(**{**named, "root": data_root, "download": data_download})).train
    except DataError as error:
        raise DataError(str(error).replace("--data.", "data_")) from error
