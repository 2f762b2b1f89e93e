"""The trajectory cache: committed shards by fingerprint, and the order in which a shard becomes committed."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stages.fingerprint import array_fingerprint
from stages.trajectories.codec import Segments
from stages.trajectories.ledger import Ledger, LedgerRow
from stages.trajectories.shards import ShardError, ShardSeal, read_shard, seal, sync_directory, write_shard


class TrajectoryCache:
    """Shards below ROOT/store/trajectories, of which only those that ROOT/ledger lists are ever read."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "store" / "trajectories"
        self.ledger = Ledger(root / "ledger")

    def __contains__(self, fingerprint: str) -> bool:
        return fingerprint in self.ledger

    def path(self, fingerprint: str) -> Path:
        return self.directory / fingerprint

    def read(self, fingerprint: str) -> Segments:
        """The segments of a committed shard.

        Raises ShardError when its bytes are not those that were committed, and LookupError without a row.
        """
        row = self.ledger.get(fingerprint)
        if row is None:
            raise LookupError(
                f"shard {fingerprint} is not in the ledger {self.ledger.root}: only committed shards are read; "
                "run the same command again to generate it"
            )
        segments = read_shard(self.path(fingerprint), expected=ShardSeal(bytes=row.bytes, sha256=row.sha256))
        if len(segments) != row.n or segments.steps != row.k:
            raise ShardError(
                f"shard {fingerprint} holds {len(segments)} segments of {segments.steps} steps, but its row in the "
                f"ledger says {row.n} of {row.k}: delete {self.path(fingerprint)} and the file of the ledger that "
                f"lists it ({fingerprint}.parquet, or merged.parquet), and run the same command to make it again"
            )
        return segments

    def commit(
        self, segments: Segments, row: LedgerRow, *, compare: Callable[[Segments], None] | None = None
    ) -> LedgerRow:
        """Write a shard and its row; returns the row with size and checksum.

        ``compare`` is called with what was read back and raises where it differs from what was attacked;
        then nothing is committed. A shard of that name without a row, left by a killed writer, is replaced; one
        with a row, which another run has committed meanwhile, stays, and its row is returned.
        """
        target = self.path(row.fingerprint)
        temporary = self.directory / f".{row.fingerprint}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            sealed = write_shard(temporary, segments, provenance={"fingerprint": row.fingerprint})
            if compare is not None:
                compare(read_shard(temporary, expected=sealed))
            # Another type of CPU makes other bytes under the same name, and the row seals the bytes that are there.
            if (existing := self.ledger.get(row.fingerprint)) is not None:
                return existing
            sealed = self._rename(temporary, target, sealed)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        committed = replace(row, bytes=sealed.bytes, sha256=sealed.sha256)
        if self.ledger.add(committed):
            return committed
        existing = self.ledger.get(row.fingerprint)
        assert existing is not None  # add() refused because it is there
        return existing

    def _rename(self, temporary: Path, target: Path, sealed: ShardSeal) -> ShardSeal:
        """Move a shard to its place; returns the seal of what lies there afterwards.

        What is already there came from a killed writer, or from another run that makes the same shard at this
        moment: it stays when it is whole, since both hold the same bytes, and is replaced when it is not.
        """
        while True:
            try:
                temporary.rename(target)
            except OSError:
                if not target.exists():
                    raise
            else:
                sync_directory(self.directory)
                return sealed
            try:
                if seal(target) == sealed:
                    return sealed
            except ShardError:
                pass
            shutil.rmtree(target)


def last_states_checksum(levels: torch.Tensor) -> str:
    """The ledger's checksum of decoded last states, over their int16 levels."""
    return array_fingerprint(np.ascontiguousarray(levels.numpy()))
