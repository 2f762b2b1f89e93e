"""The ledger: what shards a run trained on, as Parquet that anyone can query. An index, which the shards can rebuild.

ROOT/ledger/<run>/<first>-<last>.parquet holds a row for every shard of the rounds from one checkpoint to the next, and
is written by the driver alone. Now and then some files are merged into one, so that there are never many. No process
reads the ledger to do its work.

>>> ledger = Ledger(Storage.at("memory://ledger"), "runs/a")
>>> ledger.rows(), ledger.rounds
([], 0)
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.storage import Storage
from stages.trajectories.shards import LedgerRow, read_shard

FOLDER = "ledger"
REBUILT = 4096  # rows that are written at once where the ledger is rebuilt
MERGED = 32  # files of about equal reach that become one
LARGEST = 2**21  # bytes of files up to which they are still merged: more is slow to read for a single round
GROUP = 1024  # rows of a row group, whose lowest and highest round tell a reader to leave it out

_TYPES: dict[object, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    tuple[float, ...]: pa.list_(pa.float64()),
}
SCHEMA = pa.schema([(each.name, _TYPES[each.type]) for each in fields(LedgerRow)])


class LedgerError(RuntimeError):
    """A file of the ledger that cannot be read; the message names it."""


class Ledger:
    """The rows of one run."""

    def __init__(self, root: Storage, run: str) -> None:
        self.root, self.run = root, run
        self.storage = root.below(f"{FOLDER}/{run}")

    @property
    def rounds(self) -> int:
        """How many rounds, from the first on, are in it."""
        spans = self._spans()
        return spans[-1][1] + 1 if spans else 0

    def rows(self, rounds: range | None = None) -> list[LedgerRow]:
        """The rows of some rounds (or all), in order of round and unit."""
        return [_row(found) for batch in self.query(rounds) for found in batch.to_pylist()]

    def query(
        self, rounds: range | None = None, *, where: pc.Expression | None = None, columns: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of some rounds (or all) that fit a filter, such as ``pyarrow.compute.field("fresh") > 0``, in
        batches, so that memory stays small. Raises LedgerError for a damaged file."""
        if rounds is not None:
            inside = (pc.field("round") >= rounds.start) & (pc.field("round") < rounds.stop)
            where = inside if where is None else where & inside
        for first, last in self._spans():
            if rounds is None or (first < rounds.stop and last >= rounds.start):
                yield from self._read(first, last, where, columns)

    def write(self, first: int, last: int, rows: Iterable[LedgerRow]) -> None:
        """Write down the shards of some rounds."""
        columns = pa.Table.from_pylist([vars(row) for row in rows], schema=SCHEMA)
        self._put(first, last, columns.sort_by([("round", "ascending"), ("unit", "ascending")]))
        spans = self._spans()
        while len(spans) >= MERGED and _even(recent := spans[-MERGED:]) and self._size(recent) <= LARGEST:
            tables = [pa.Table.from_batches(self._read(*span, None, None), SCHEMA) for span in recent]
            self._put(recent[0][0], recent[-1][1], pa.concat_tables(tables))
            self.storage.delete([_key(*span) for span in recent])
            spans = self._spans()

    def complete(
        self, stop: int, read: Callable[[int], Iterable[dict]], find: Callable[[str], LedgerRow] | None = None
    ) -> None:
        """Have it hold the rounds up to one, and no other: what is lacking is rebuilt from the lines of metrics, which
        ``read`` gives from a round on, with a `find` as in `rebuild`. Raises ShardError for a shard that cannot be
        read."""
        self.storage.delete([_key(*span) for span in self._files() if span[1] >= stop])
        lacking = 0
        for first, last in self._spans():
            if first <= lacking:
                lacking = last + 1
        if lacking < stop:
            self.rebuild(read(lacking), stop, find)

    def rebuild(self, lines: Iterable[dict], stop: int, find: Callable[[str], LedgerRow] | None = None) -> None:
        """Write down what is lacking of the shards that lines of metrics name, up to a round, by what they say of
        themselves.

        ``find`` gives a shard's row by its name; unset, the shard is read. Raises ShardError for one that cannot be.
        """
        find = find or (lambda name: read_shard(self.root, name).row)
        spans = self._spans()

        def is_held(number: int) -> bool:
            return any(first <= number <= last for first, last in spans)

        rows, first = [], None
        for line in itertools.takewhile(lambda line: line["round"] < stop, lines):
            number = line["round"]
            if is_held(number):
                continue
            first = number if first is None else first
            rows += [find(name) for name in line["shards"]]
            if len(rows) >= REBUILT or number + 1 == stop or is_held(number + 1):
                self.write(first, number, rows)
                rows, first = [], None

    def clear(self) -> None:
        """Forget all rows."""
        self.storage.delete([_key(*span) for span in self._files()])

    def replace(self, other: "Ledger") -> None:
        """Take over another's rows in place of one's own, and leave it empty."""
        before, spans = self._files(), other._files()
        for span in spans:
            self.storage.put(_key(*span), other.storage.get(_key(*span)))
        self.storage.delete([_key(*span) for span in before if span not in spans])
        other.clear()

    def _put(self, first: int, last: int, table: pa.Table) -> None:
        content = pa.BufferOutputStream()
        pq.write_table(table, content, row_group_size=GROUP)
        self.storage.put(_key(first, last), content.getvalue().to_pybytes())

    def _size(self, spans: list[tuple[int, int]]) -> int:
        keys = {_key(*span) for span in spans}
        return sum(each.bytes for each in self.storage.entries() if each.key in keys)

    def _files(self) -> list[tuple[int, int]]:
        """First and last round of each file."""
        found = (re.fullmatch(r"(\d+)-(\d+)\.parquet", name) for name in self.storage.names())
        return [(int(each[1]), int(each[2])) for each in found if each]

    def _spans(self) -> list[tuple[int, int]]:
        """First and last round of each file, in order, without those that a merged one holds."""
        spans: list[tuple[int, int]] = []
        for first, last in sorted(self._files(), key=lambda span: (span[0], -span[1])):
            if not spans or last > spans[-1][1]:
                spans.append((first, last))
        return spans

    def _read(
        self, first: int, last: int, where: pc.Expression | None, columns: list[str] | None
    ) -> Iterator[pa.RecordBatch]:
        from pyarrow import dataset as ds  # which imports pandas: a second that only readers spend

        key = _key(first, last)
        try:
            fragment = ds.ParquetFileFormat().make_fragment(pa.BufferReader(self.storage.get(key)))
            yield from fragment.to_batches(SCHEMA, columns=columns, filter=where, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise LedgerError(
                f"{self.storage.location(key)} of the ledger is damaged ({error}): python -m pipeline.store ROOT "
                "rebuild makes it again from the shards"
            ) from error


def _even(spans: list[tuple[int, int]]) -> bool:
    """Whether no file reaches more than twice as many rounds as another."""
    reach = [last - first + 1 for first, last in spans]
    return max(reach) <= 2 * min(reach)


def _key(first: int, last: int) -> str:
    return f"{first:07}-{last:07}.parquet"


def _row(columns: dict[str, Any]) -> LedgerRow:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in columns.items()
    }
    return LedgerRow(**values)
