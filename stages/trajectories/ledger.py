"""The ledger: the record of committed shards, in Parquet, one row a shard; what it does not list does not exist.

Writers add parts of one row with `os.link`, which fails where the name exists, so any number of them need no
lock. Now and then the parts are merged into one file.

>>> import tempfile
>>> ledger = Ledger(Path(tempfile.mkdtemp()))
>>> "0123" in ledger, ledger.rows()
(False, [])
"""

import fcntl
import hashlib
import io
import json
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.trajectories.disk import sync_directory, write_files

MERGED = "merged.parquet"


class LedgerError(RuntimeError):
    """A file of the ledger that cannot be read; the message names it."""


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One committed shard."""

    fingerprint: str
    """Name of the shard: the hash of what determines it."""
    prefix: str
    """Fingerprint of what its states depend on whatever their number: equal prefixes share first states."""
    parents: tuple[str, ...]
    """Fingerprints of the shards on which its segments go on."""
    round: int
    """Round of the schedule that it was made for."""
    unit: int
    """Number of the unit in its round."""
    version: int
    """Weights version that was attacked."""
    weights: str
    """Fingerprint of the attacked weights."""
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
    bytes: int
    """Size of the shard's files together."""
    sha256: str
    """The shard's seal."""
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


_TYPES: dict[object, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
    tuple[float, ...]: pa.list_(pa.float64()),
}
_SCHEMA = pa.schema([(field.name, _TYPES[field.type]) for field in fields(LedgerRow)])


class Ledger:
    """The rows below ``root``, a directory that is made when it is not there.

    Every row is a file ``<fingerprint>.parquet`` until `compact` merges it. Rows never change; `remove` is
    for shards that are about to be deleted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self._read: dict[Path, tuple[tuple[int, ...], dict[str, LedgerRow]]] = {}

    def __contains__(self, fingerprint: str) -> bool:
        """Whether the shard is committed. Costs a stat or two, so it can be polled."""
        # the part first: compaction removes it only after the merged file holds the row
        return self._part(fingerprint).exists() or fingerprint in self._rows_of(self.root / MERGED)

    def get(self, fingerprint: str) -> LedgerRow | None:
        """The row of a shard, or None where it is not committed. Raises LedgerError for an unreadable file."""
        for path in (self._part(fingerprint), self.root / MERGED):
            row = self._rows_of(path).get(fingerprint)
            if row is not None:
                return row
        return None

    def rows(self) -> list[LedgerRow]:
        """All rows by round, unit and fingerprint. Raises LedgerError for an unreadable file."""
        rows = dict(self._merge(self._parts()))
        return sorted(rows.values(), key=lambda row: (row.round, row.unit, row.fingerprint))

    def with_prefix(self, prefix: str) -> list[LedgerRow]:
        """The rows of shards that share their first states, the shortest first."""
        return sorted((row for row in self.rows() if row.prefix == prefix), key=lambda row: row.k)

    def add(self, row: LedgerRow) -> bool:
        """Commit a shard: durable when this returns. False where its row is already there, which then stays."""
        if row.fingerprint in self:
            return False
        temporary = self._write([row])
        try:
            os.link(temporary, self._part(row.fingerprint))
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        sync_directory(self.root)
        return True

    def compact(self) -> None:
        """Merge all parts into one file: a scan of 1,000 parts takes about a second."""
        with self._exclusively():
            parts = self._parts()
            self._replace(self._merge(parts).values())
            for part in parts:
                part.unlink()

    def remove(self, fingerprints: Collection[str]) -> None:
        """Forget shards; call it before their files are deleted. Unknown fingerprints are passed over."""
        gone = set(fingerprints)
        with self._exclusively():
            merged = self._rows_of(self.root / MERGED)
            if gone & merged.keys():
                self._replace(row for fingerprint, row in merged.items() if fingerprint not in gone)
            for fingerprint in gone:
                self._part(fingerprint).unlink(missing_ok=True)
            sync_directory(self.root)

    def _part(self, fingerprint: str) -> Path:
        return self.root / f"{fingerprint}.parquet"

    def _parts(self) -> list[Path]:
        return [path for path in self.root.glob("*.parquet") if path.name != MERGED]

    def _merge(self, parts: Iterable[Path]) -> dict[str, LedgerRow]:
        """The rows of the parts and the merged file; the merged file's where both have one."""
        rows: dict[str, LedgerRow] = {}
        for path in (*parts, self.root / MERGED):  # in this order: see __contains__
            rows.update(self._rows_of(path))
        return rows

    def _rows_of(self, path: Path) -> dict[str, LedgerRow]:
        """The rows of a file, kept until it changes; none where it does not exist."""
        try:
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            known, rows = self._read.get(path, ((), {}))
            if known != stamp:
                rows = _read_rows(path)
                self._read[path] = stamp, rows
        except FileNotFoundError:
            self._read.pop(path, None)
            return {}
        return rows

    def _write(self, rows: Iterable[LedgerRow]) -> Path:
        """A new file that no reader looks at, on the disk when this returns."""
        listed = list(rows)
        schema = _SCHEMA.with_metadata({"sha256": _sha256(listed)})
        table = pa.Table.from_pylist([vars(row) for row in listed], schema=schema)
        content = io.BytesIO()
        pq.write_table(table, content, write_statistics=False)
        name = f".{os.getpid()}.{secrets.token_hex(8)}.partial"
        write_files(self.root, {name: content.getbuffer()})
        return self.root / name

    def _replace(self, rows: Iterable[LedgerRow]) -> None:
        os.replace(self._write(rows), self.root / MERGED)
        sync_directory(self.root)

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Only one process rewrites the merged file; the lock dies with its process."""
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _read_rows(path: Path) -> dict[str, LedgerRow]:
    content = pa.BufferReader(path.read_bytes())
    try:
        table = pq.ParquetFile(content).read(use_threads=False)
        rows = [_row(columns) for columns in table.to_pylist()]
        intact = (table.schema.metadata or {}).get(b"sha256") == _sha256(rows).encode()
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise LedgerError(_damage(path, str(error))) from error
    names = [row.fingerprint for row in rows]
    if not intact:
        raise LedgerError(_damage(path, "rows that do not have the sha256 in its metadata"))
    if path.name != MERGED and names != [path.stem]:
        raise LedgerError(_damage(path, f"the rows of shards {names} instead of {path.stem}"))
    return dict(zip(names, rows, strict=True))


def _damage(path: Path, found: str) -> str:
    return (
        f"{path} of the ledger is damaged: found {found}, expected the rows of committed shards; delete this file "
        "and run the same command again: the shards that it listed are verified or made again"
    )


def _sha256(rows: list[LedgerRow]) -> str:
    """sha256 over the rows' values: Parquet's own checksums leave out the footer."""
    return hashlib.sha256(json.dumps([vars(row) for row in rows]).encode()).hexdigest()


def _row(columns: Mapping[str, Any]) -> LedgerRow:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in columns.items()
    }
    return LedgerRow(**values)
