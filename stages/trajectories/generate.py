"""Generation: a unit of the schedule attacks the robust classifier and becomes one committed shard."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int16, Int64
from torch import Tensor

from stages.data.augmentation import augment
from stages.data.splits import Split
from stages.fingerprint import array_fingerprint, canonical_json, fingerprint
from stages.rap.attack import AttackProcess, Trajectory, attack, draw_start
from stages.rap.robust import RobustClassifier
from stages.trajectories.cache import TrajectoryCache, last_states_checksum
from stages.trajectories.codec import Segments, encode
from stages.trajectories.ledger import LedgerRow

FORMAT = 1  # of what a unit's fingerprint covers


@dataclass(frozen=True, eq=False, kw_only=True)
class Unit:
    """The work that makes one shard: which images, from which starts, against which weights.

    ``index`` are rows of the data set. An example with ``parent`` >= 0 goes on from the last state of segment
    ``parent_position`` in the shard ``parents[parent]``, which had ``made`` steps in all.
    """

    round: int
    number: int
    version: int
    weights: str
    model: str
    """Fingerprint of all of the robust classifier that the weights version leaves open."""
    data: str
    process: AttackProcess
    steps: int
    start_seed: int
    index: Int64[np.ndarray, " example"]
    made: Int64[np.ndarray, " example"]
    augmentation: Int16[np.ndarray, "example 3"] | None
    parents: tuple[str, ...]
    parent: Int64[np.ndarray, " example"]
    parent_position: Int64[np.ndarray, " example"]

    @cached_property
    def prefix(self) -> str:
        """What the states depend on, whatever the number of steps: equal prefixes share their first states."""
        process = replace(self.process, steps=0) if self.process.conditioning == "state" else self.process
        arrays = [self.index, self.made, self.parent, self.parent_position]
        return fingerprint(
            "trajectories",
            FORMAT,
            process=process,
            model=self.model,
            weights=self.weights,
            data=self.data,
            start_seed=self.start_seed,
            examples=array_fingerprint(*arrays, *([] if self.augmentation is None else [self.augmentation])),
            parents=self.parents,
        )

    @cached_property
    def fingerprint(self) -> str:
        """The name of the shard."""
        return fingerprint("shard", FORMAT, prefix=self.prefix, process=self.process, steps=self.steps)


class LossyShardError(RuntimeError):
    """A shard that did not decode to the states that were attacked; it is never committed."""


def generate_unit(
    unit: Unit, robust: RobustClassifier, split: Split, cache: TrajectoryCache, *, device: str = "cpu"
) -> LedgerRow:
    """Make the unit's shard and commit it; returns its row. What is already committed is not made again.

    ``robust`` holds the weights ``unit.weights``, in eval mode on ``device``; ``split`` holds the images.
    A committed shard with the same prefix and more steps is cut instead of attacked anew.
    """
    committed = cache.ledger.get(unit.fingerprint)
    if committed is not None:
        return committed
    began = time.perf_counter()
    images, labels = _examples(unit, split)
    clean = unit.process.lattice.from_bytes(images)
    longer = _longer(unit, cache)
    if longer is not None:
        segments, states = _cut(cache.read(longer.fingerprint), unit, clean)
        steps = slice(0, unit.steps)
        measured = (longer.success[steps], longer.loss[steps], longer.zero_gradients[steps])
    else:
        start = _starts(unit, split, cache, clean)
        trajectory = _attack(unit, robust, images, labels, start, device)
        segments = encode(
            trajectory,
            clean,
            process=unit.process,
            index=torch.from_numpy(unit.index),
            made=torch.from_numpy(unit.made),
            augmentation=None if unit.augmentation is None else torch.from_numpy(unit.augmentation),
            start_seed=unit.start_seed if _derivable(unit) else None,
        )
        states = trajectory.levels
        measured = tuple(
            tuple(values.double().mean(1).tolist())
            for values in (trajectory.success, trajectory.losses, trajectory.zero_gradients)
        )
    row = LedgerRow(
        fingerprint=unit.fingerprint,
        prefix=unit.prefix,
        parents=unit.parents,
        round=unit.round,
        unit=unit.number,
        version=unit.version,
        weights=unit.weights,
        attack=canonical_json(unit.process),
        first_index=int(unit.index.min()),
        last_index=int(unit.index.max()),
        n=len(unit.index),
        k=unit.steps,
        bytes=0,
        sha256="",
        last_states=last_states_checksum(states[-1]),
        success=measured[0],
        loss=measured[1],
        zero_gradients=measured[2],
        seconds=time.perf_counter() - began,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )

    def compare(read_back: Segments) -> None:
        if not torch.equal(read_back.states(clean), states):
            raise LossyShardError(
                f"shard {unit.fingerprint} does not decode to the states that were attacked; nothing was committed. "
                "This is a bug or failing memory: please report it with the recipe"
            )

    return cache.commit(segments, row, compare=compare)


def _examples(unit: Unit, split: Split) -> tuple[Tensor, Tensor]:
    positions = split.positions(unit.index)
    images = torch.from_numpy(split.images[positions])
    if unit.augmentation is not None:
        images = augment(images, torch.from_numpy(unit.augmentation))
    return images, torch.from_numpy(split.labels[positions])


def _derivable(unit: Unit) -> bool:
    """Whether the start is integers of the named hash, so that the shard need not hold it."""
    fresh = not unit.made.any() and not unit.parents
    return fresh and unit.process.norm == "Linf" and unit.process.start == "uniform"


def _starts(
    unit: Unit, split: Split, cache: TrajectoryCache, clean: Int16[Tensor, "batch channel height width"]
) -> Int16[Tensor, "batch channel height width"]:
    """x_0 minus x: noise, or where the example's previous segment ended."""
    start = draw_start(unit.process, unit.start_seed, unit.index, tuple(clean.shape[1:]))
    for number, parent in enumerate(unit.parents):
        mine = torch.from_numpy(np.flatnonzero(unit.parent == number))
        theirs = torch.from_numpy(unit.parent_position[mine.numpy()])
        segments = cache.read(parent)
        ends = segments.states_at(clean[mine], torch.full_like(theirs, segments.steps), theirs)
        start[mine] = ends - clean[mine]
    return start


def _attack(
    unit: Unit, robust: RobustClassifier, images: Tensor, labels: Tensor, start: Tensor, device: str
) -> Trajectory:
    """The attack, in batches of the process's size, on ``device``; the result lies on the CPU."""
    made = torch.from_numpy(unit.made)
    with unit.process.applied():
        pieces = [
            attack(
                robust,
                images[part].to(device),
                labels[part].to(device),
                unit.process,
                start[part].to(device),
                steps=unit.steps,
                made=made[part].to(device),
                seed=unit.start_seed,
            ).cpu()
            for part in _parts(len(images), unit.process.batch)
        ]
    return Trajectory.join(pieces)


def _parts(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(count, first + size))


def _longer(unit: Unit, cache: TrajectoryCache) -> LedgerRow | None:
    """A committed shard whose first states are this unit's."""
    rows = [row for row in cache.ledger.with_prefix(unit.prefix) if row.k >= unit.steps]
    return min(rows, key=lambda row: row.k, default=None)


def _cut(longer: Segments, unit: Unit, clean: Tensor) -> tuple[Segments, Tensor]:
    """The first steps of a longer shard as segments of this unit, and their states."""
    segments = replace(
        longer,
        process=unit.process,
        signs=None if longer.signs is None else longer.signs[: unit.steps],
        delta=None if longer.delta is None else longer.delta[: unit.steps + 1],
    )
    return segments, segments.states(clean)
