"""Shards: the segments of one unit, with their row of the ledger, in one object (README.md beside this file).

A shard exists when its object does, and a reader checks all of what it reads: a missing, truncated or altered one
is named in an error and never read as data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from stages.fingerprint import canonical
from stages.rap.process import AttackProcess
from stages.storage import Storage
from stages.trajectories.archive import ArchiveError, pack, seal, unpack
from stages.trajectories.codec import Segments, pack_delta, pack_signs, unpack_delta, unpack_signs

FORMAT = "rap-trajectories"
VERSION = 2
FOLDER = "trajectories"


class ShardError(RuntimeError):
    """A shard that cannot be read; the message names the shard, what was found and what to do."""


class MissingShardError(ShardError):
    """A shard of which nothing is there."""


class AlteredShardError(ShardError):
    """A shard whose bytes are not those that were written."""


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """What is known of a shard without decoding it: its row of the ledger, and the attribute ``row`` in it."""

    fingerprint: str
    """Name of the shard: the hash of what determines it."""
    parent: str
    """Fingerprint of the shard on which its segments go on; empty where all start from noise."""
    run: str
    """Run that made it."""
    round: int
    """Round of the schedule that it was made for."""
    unit: int
    """Number of the unit in its round."""
    cohort: int
    """Number of the cohort that was attacked."""
    visit: int
    """How often the cohort had been attacked before."""
    version: int
    """Weights version that was attacked."""
    weights: str
    """Fingerprint of the attacked weights."""
    data: str
    """Fingerprint of the training split whose images were attacked."""
    attack: str
    """The attack process as canonical JSON."""
    first_index: int
    """Lowest row of the data set in it."""
    last_index: int
    """Highest row of the data set in it."""
    n: int
    """Number of segments."""
    k: int
    """Steps of each segment."""
    fresh: int
    """Segments that start from noise."""
    last_states: str
    """Checksum of the decoded last states."""
    success: tuple[float, ...]
    """Share of misclassified states, for each state that was attacked."""
    loss: tuple[float, ...]
    """Mean loss of the attack, likewise."""
    zero_gradients: tuple[float, ...]
    """Share of pixels without gradient, likewise."""
    seconds: float
    """Wall time of the attack."""
    worker: str
    """Host and process that made it."""
    created: str
    """UTC time, ISO 8601."""
    bytes: int = 0
    """Size of the shard; as the seal, known once it is packed, and so not in the shard's own attributes."""
    sha256: str = ""
    """The shard's seal: sha256 of all its bytes but the last 64, which are this sum."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard in memory."""

    row: LedgerRow
    segments: Segments


def shard_key(fingerprint: str) -> str:
    """Where a shard lies below the root."""
    return f"{FOLDER}/{fingerprint}.zarr.zip"


def pack_shard(shard: Shard) -> bytes:
    """The object of a shard."""
    segments = shard.segments
    row = {each.name: getattr(shard.row, each.name) for each in fields(LedgerRow)[:-2]}
    return pack(_arrays(segments), {**_attributes(segments), "row": row})


def unpack_shard(content: bytes, place: str) -> Shard:
    """The shard in an object's bytes; ``place`` is what errors call it.

    Raises AlteredShardError for bytes that are not those that were packed.
    """
    try:
        arrays, attributes = unpack(content)
    except ArchiveError as error:
        raise AlteredShardError(_damage(place, str(error))) from error
    found = (attributes.get("format"), attributes.get("version"))
    if found != (FORMAT, VERSION):
        raise ShardError(
            f"shard {place} has format {found[0]!r}, version {found[1]!r}; this program reads {FORMAT!r}, version "
            f"{VERSION}: read it with the program that wrote it, or delete it and make it again"
        )
    row: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in attributes["row"].items()
    }
    sealed = seal(content) or ""
    return Shard(LedgerRow(**row, bytes=len(content), sha256=sealed), _decode(arrays, attributes))


def read_shard(storage: Storage, fingerprint: str) -> Shard:
    """A shard below the root. Raises MissingShardError or AlteredShardError; neither is ever read as data."""
    key = shard_key(fingerprint)
    place, content = storage.location(key), storage.find(key)
    if content is None:
        raise MissingShardError(_damage(place, "no such object"))
    shard = unpack_shard(content, place)
    if shard.row.fingerprint != fingerprint:
        raise AlteredShardError(_damage(place, f"shard {shard.row.fingerprint}"))
    return shard


def write_shard(storage: Storage, fingerprint: str, content: bytes) -> None:
    """Commit a packed shard, in place of one that is there."""
    storage.put(shard_key(fingerprint), content)


def _damage(place: str, found: str) -> str:
    return (
        f"shard {place}: found {found}, expected the shard that was committed; nothing of it was used. Restore the "
        "file, or start the run anew under another --name, which makes it again"
    )


def _arrays(segments: Segments) -> dict[str, np.ndarray]:
    arrays = {"index": segments.index.numpy(), "taken": segments.taken.numpy()}
    if segments.augmentation is not None:
        arrays["augmentation"] = segments.augmentation.numpy()
    if segments.start is not None:
        arrays["start"] = segments.start.numpy()
    if segments.signs is not None:
        arrays["signs"], arrays["nonzero"] = pack_signs(segments.signs)
    if segments.delta is not None:
        arrays["delta"] = pack_delta(segments.delta)
    if segments.success is not None:
        arrays["success"] = segments.success.T.contiguous().numpy().view(np.uint8)
    return arrays


def _attributes(segments: Segments) -> dict[str, object]:
    """What a reader of any language needs to decode the arrays."""
    start: dict[str, object] = {"stored": True}
    if segments.start_seed is not None:
        # as a string: a 64-bit integer is more than many JSON readers hold exactly
        start = {"stored": False, "hash": "splitmix64", "seed": str(segments.start_seed)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "process": _canonical(segments.process),
        "shape": list(segments.shape),
        "segments": len(segments),
        "steps": segments.steps,
        "start": start,
    }


@lru_cache(maxsize=8)
def _canonical(process: AttackProcess) -> object:
    return canonical(process)


def _decode(arrays: Mapping[str, np.ndarray], attributes: Mapping) -> Segments:
    channel, height, width = attributes["shape"]
    pixels, signs, delta, success = channel * height * width, None, None, None
    if "delta" in arrays:
        delta = unpack_delta(arrays["delta"], states=attributes["steps"] + 1, pixels=pixels)
    else:
        signs = unpack_signs(arrays["signs"], arrays["nonzero"], pixels=pixels)
    if "success" in arrays:
        success = torch.from_numpy(np.ascontiguousarray(arrays["success"].T)).bool()
    optional = {name: torch.from_numpy(arrays[name]) if name in arrays else None for name in ("augmentation", "start")}
    start = attributes["start"]
    return Segments(
        process=AttackProcess(**attributes["process"]),
        shape=(channel, height, width),
        index=torch.from_numpy(arrays["index"]),
        taken=torch.from_numpy(arrays["taken"]),
        start_seed=None if start["stored"] else int(start["seed"]),
        signs=signs,
        delta=delta,
        success=success,
        **optional,
    )
