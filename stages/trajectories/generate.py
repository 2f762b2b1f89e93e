"""Generation: a unit of the schedule attacks the robust classifier and becomes one committed shard."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Int16, Int64
from torch import Tensor

from stages.data.augmentation import augment, carry
from stages.data.splits import Split
from stages.fingerprint import array_fingerprint, canonical_json, fingerprint
from stages.numerics import within_memory
from stages.rap.attack import Trajectory, attack
from stages.rap.norms import draw_start, shrink
from stages.rap.process import AttackProcess
from stages.rap.robust import RobustClassifier
from stages.storage import Storage
from stages.trajectories.codec import Segments, encode
from stages.trajectories.shards import LedgerRow, Shard, pack_shard, unpack_shard, write_shard

FORMAT = 2  # of what a unit's fingerprint covers


@dataclass(frozen=True, eq=False, kw_only=True)
class Unit:
    """The work that makes one shard: one visit of one cohort, against one weights version.

    ``index`` are rows of the data set, ``taken`` the steps that each example's start has had. Where that is more than
    0 the example goes on from the last state of the segment at its own place in the shard ``parent``.
    """

    round: int
    number: int
    cohort: int
    visit: int
    version: int
    weights: str
    model: str
    """Fingerprint of all of the robust classifier that the weights version leaves open."""
    data: str
    process: AttackProcess
    steps: int
    start_seed: int
    index: Int64[np.ndarray, " example"]
    taken: Int64[np.ndarray, " example"]
    augmentation: Int16[np.ndarray, "example 3"] | None
    parent: str

    @cached_property
    def fingerprint(self) -> str:
        """The name of the shard."""
        arrays = [self.index, self.taken] + ([] if self.augmentation is None else [self.augmentation])
        return fingerprint(
            "shard",
            FORMAT,
            process=self.process,
            steps=self.steps,
            model=self.model,
            weights=self.weights,
            data=self.data,
            start_seed=self.start_seed,
            examples=array_fingerprint(*arrays),
            parent=self.parent,
        )


class LossyShardError(RuntimeError):
    """A shard that did not decode to the states that were attacked; it is never committed."""


def generate_unit(
    unit: Unit,
    model: Callable[[], RobustClassifier],
    split: Split,
    storage: Storage,
    *,
    parent: Segments | None,
    run: str = "",
    turn: AbstractContextManager[object] | None = None,
) -> Shard:
    """Make the unit's shard and commit it; what is there under its name is replaced.

    ``model`` gives the robust classifier with the weights ``unit.weights``, in eval mode; ``split`` holds
    the images, and ``parent`` the segments of the shard ``unit.parent``. ``turn`` is held for the attack alone, so that
    a unit's shard is packed, checked and written while the next unit is attacked. Raises LossyShardError, and
    DeviceMemoryError where the device has no room for a batch, before anything is committed.
    """
    images, labels = _examples(unit, split)
    clean = unit.process.lattice.from_bytes(images)
    start = _starts(unit, split, clean, parent)
    with turn or nullcontext():
        began = time.perf_counter()
        trajectory = _attack(unit, model(), images, labels, start)
        seconds = time.perf_counter() - began
    segments = encode(
        trajectory,
        clean,
        process=unit.process,
        index=torch.from_numpy(unit.index),
        taken=torch.from_numpy(unit.taken),
        augmentation=None if unit.augmentation is None else torch.from_numpy(unit.augmentation),
        start_seed=unit.start_seed if _derivable(unit) else None,
    )
    content = pack_shard(Shard(_row(unit, trajectory, run=run, seconds=seconds), segments))
    decoded = unpack_shard(content, unit.fingerprint)
    if not torch.equal(decoded.segments.states(clean), trajectory.levels):
        raise LossyShardError(
            f"shard {unit.fingerprint} does not decode to the states that were attacked; nothing was committed. "
            "This is a bug or failing memory: please report it with the recipe"
        )
    write_shard(storage, unit.fingerprint, content)
    return decoded


def last_states_checksum(levels: Tensor) -> str:
    """The ledger's checksum of decoded last states, over their int16 levels."""
    return array_fingerprint(levels.numpy())


def augmented(images: Tensor, augmentation: Int16[Tensor, "batch 3"] | None) -> Tensor:
    """The images as they were attacked."""
    return images if augmentation is None else augment(images, augmentation)


def clean_levels(segments: Segments, split: Split) -> Int16[Tensor, "segment channel height width"]:
    """The levels of the clean images of segments, as they were attacked, from a split that holds them."""
    images = torch.from_numpy(split.images[split.positions(segments.index.numpy())])
    return segments.process.lattice.from_bytes(augmented(images, segments.augmentation))


def _row(unit: Unit, trajectory: Trajectory, *, run: str, seconds: float) -> LedgerRow:
    success, loss, zero_gradients = (
        tuple(values.double().mean(1).tolist())
        for values in (trajectory.success, trajectory.losses, trajectory.zero_gradients)
    )
    return LedgerRow(
        fingerprint=unit.fingerprint,
        parent=unit.parent,
        run=run,
        round=unit.round,
        unit=unit.number,
        cohort=unit.cohort,
        visit=unit.visit,
        version=unit.version,
        weights=unit.weights,
        data=unit.data,
        attack=_json(unit.process),
        first_index=int(unit.index.min()),
        last_index=int(unit.index.max()),
        n=len(unit.index),
        k=unit.steps,
        fresh=int((unit.taken == 0).sum()),
        last_states=last_states_checksum(trajectory.levels[-1]),
        success=success,
        loss=loss,
        zero_gradients=zero_gradients,
        seconds=seconds,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


@lru_cache(maxsize=8)
def _json(process: AttackProcess) -> str:
    return canonical_json(process)


def _examples(unit: Unit, split: Split) -> tuple[Tensor, Tensor]:
    positions = split.positions(unit.index)
    images = torch.from_numpy(split.images[positions])
    augmentation = None if unit.augmentation is None else torch.from_numpy(unit.augmentation)
    return augmented(images, augmentation), torch.from_numpy(split.labels[positions])


def _derivable(unit: Unit) -> bool:
    """Whether the start is integers of the named hash, so that the shard need not hold it."""
    return not unit.parent and unit.process.norm == "Linf" and unit.process.start == "uniform"


def _starts(
    unit: Unit, split: Split, clean: Int16[Tensor, "batch channel height width"], parent: Segments | None
) -> Int16[Tensor, "batch channel height width"]:
    """x_0 minus x: noise, or the perturbation in which the example's last visit ended, moved with its image."""

    def noise_of(rows: Int64[np.ndarray, " row"]) -> Int16[Tensor, "row channel height width"]:
        return draw_start(unit.process, unit.start_seed, rows, tuple(clean.shape[1:]))

    if parent is None:
        return noise_of(unit.index)
    before = clean_levels(parent, split)
    carried = parent.last_states(before) - before
    if unit.augmentation is not None and parent.augmentation is not None:
        carried, inside = carry(carried, parent.augmentation, torch.from_numpy(unit.augmentation))
        carried = shrink(torch.where(inside, carried, noise_of(unit.index)), unit.process)
    if (fresh := unit.taken == 0).any():
        carried[torch.from_numpy(fresh)] = noise_of(unit.index[fresh])
    return carried


def _attack(unit: Unit, robust: RobustClassifier, images: Tensor, labels: Tensor, start: Tensor) -> Trajectory:
    """The attack, in batches of the process's size, where the model lies; the result lies on the CPU."""
    taken, device = torch.from_numpy(unit.taken), next(robust.parameters()).device
    with unit.process.applied(), within_memory("attack.batch", unit.process.batch):
        pieces = [
            attack(
                robust,
                images[part].to(device),
                labels[part].to(device),
                unit.process,
                start[part].to(device),
                unit.process.times(unit.steps, taken[part].to(device), unit.start_seed),
            ).cpu()
            for part in _parts(len(images), unit.process.batch)
        ]
    return Trajectory.join(pieces)


def _parts(count: int, size: int) -> Iterator[slice]:
    """As few even parts as a size allows."""
    parts = -(-count // size)
    for part in range(parts):
        yield slice(part * count // parts, (part + 1) * count // parts)
