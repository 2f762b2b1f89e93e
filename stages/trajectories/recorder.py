"""Writing a run's ledger while the run goes on. It imports no PyArrow, without which loops run where it is missing."""

import threading
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from stages.trajectories.shards import LedgerRow

Read = Callable[[int], Iterable[dict]]
Find = Callable[[str], LedgerRow]


@runtime_checkable
class Index(Protocol):
    """What a recorder needs of a ledger (`stages.trajectories.ledger`)."""

    def write(self, first: int, last: int, rows: Iterable[LedgerRow]) -> None: ...

    def complete(self, stop: int, read: Read, find: Find | None) -> None: ...


class Recorder:
    """Writes a run's ledger while it goes on: rows as they are committed, a file at each checkpoint."""

    def __init__(self, ledger: Index) -> None:
        self.ledger = ledger
        self._rows: list[LedgerRow] = []
        self._first = 0
        self._lock = threading.Lock()  # rows are entered and lines followed by two threads of the loop on Ray

    def begin(self, number: int, read: Read, find: Find | None = None) -> None:
        """Training goes on with a round: the ledger holds those before it, and no other; ``read`` gives the lines of
        metrics from a round on, ``find`` the row of a shard by its name, for one that reading alone does not bring."""
        with self._lock:
            self._rows, self._first = [], number
            self.ledger.complete(number, read, find)

    def enter(self, rows: list[LedgerRow]) -> None:
        """Take in the rows of a round that is committed."""
        with self._lock:
            self._rows += rows

    def follow(self, line: dict) -> None:
        """Write a file where a line of metrics says that its round ends with a checkpoint."""
        with self._lock:
            last = line["round"]
            if not line["checkpoint"] or last < self._first:  # which was rebuilt, when training began again after it
                return
            done = [row for row in self._rows if row.round <= last]
            self._rows = [row for row in self._rows if row.round > last]
            self.ledger.write(self._first, last, done)
            self._first = last + 1
