"""A board: a small actor on which the workers of a loop post what the others wait for, so that nobody polls.

Whatever is posted can be lost with the board: it only says what storage holds. Then every call raises BoardLostError,
and the loop begins again from its last checkpoint, with a new board.

>>> board = Board.open()  # doctest: +SKIP
>>> era = board.begin({"round": 0})  # doctest: +SKIP
>>> board.post(era, "version", 0, "name", arrays={"weights": zeros})  # doctest: +SKIP
>>> board.wait(era, "version", 0)  # doctest: +SKIP
Posted(value='name', arrays=Ref(...))
"""

import asyncio
import pickle
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.refs import Ref, put
from cluster.session import is_open
from cluster.tasks import LostError

KEPT = 4  # of each topic; whoever waits is never that far behind whoever posts


class BoardLostError(LostError):
    """The board's process is gone."""


@dataclass(frozen=True)
class Posted:
    """What stands on the board under a topic and number."""

    value: Any
    arrays: Ref[dict[str, np.ndarray]] | None
    """In the object store, owned by the board, so that they outlive whoever posted them."""


class _Board:
    """The actor. An era begins with each start of the training; what earlier eras posted is forgotten.

    Whatever it is given comes pickled and stays so: its process is spared the imports, which take seconds.
    """

    def __init__(self) -> None:
        self._era, self._start = 0, b""
        self._posted: dict[str, dict[int, Posted]] = {}
        self._lines: deque[bytes] = deque()
        self._closed = False
        self._changed = asyncio.Condition()

    async def begin(self, start: bytes) -> int:
        self._era, self._start = self._era + 1, start
        self._posted.clear()
        await self._notify()
        return self._era

    async def begun(self, after: int) -> tuple[int, bytes] | None:
        await self._until(lambda: self._era > after)
        return (self._era, self._start) if self._era > after else None

    async def post(self, era: int, topic: str, number: int, value: bytes, arrays: Any) -> None:  # noqa: ANN401
        if era != self._era:
            return
        stored = None if arrays is None else put(arrays)
        found = self._posted.setdefault(topic, {})
        found[number] = Posted(value, stored)
        found.pop(number - KEPT, None)
        await self._notify()

    async def wait(self, era: int, topic: str, number: int) -> Posted | None:
        await self._until(lambda: era != self._era or number in self._posted.get(topic, {}))
        return self._posted.get(topic, {}).get(number) if era == self._era else None

    async def tell(self, line: bytes) -> None:
        self._lines.append(line)
        await self._notify()

    async def line(self) -> bytes | None:
        await self._until(lambda: bool(self._lines))
        return self._lines.popleft() if self._lines else None

    async def close(self) -> None:
        self._closed = True
        await self._notify()

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or holds())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@dataclass(frozen=True)
class Board:
    """A board's handle, which may be sent to any process. Every call raises BoardLostError where the board is gone."""

    _actor: Any

    @staticmethod
    def open() -> "Board":
        """A new board, which ends with this process."""
        actor: Any = ray.remote(_Board).options(num_cpus=0, max_concurrency=1000)
        return Board(actor.remote())

    def begin(self, start: object) -> int:
        """Begin an era, with what whoever waits for it is to know; returns its number."""
        return self._get(self._actor.begin.remote(pickle.dumps(start)))

    def begun(self, after: int) -> tuple[int, Any] | None:
        """The era that begins after another, and its start; None once the board is closed."""
        found = self._get(self._actor.begun.remote(after))
        return None if found is None else (found[0], pickle.loads(found[1]))

    def post(
        self,
        era: int,
        topic: str,
        number: int,
        value: object,
        *,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Post something, unless another era has begun; the last few of a topic are kept."""
        self._get(self._actor.post.remote(era, topic, number, pickle.dumps(value), arrays))

    def wait(self, era: int, topic: str, number: int) -> Posted | None:
        """Wait for what is posted; None once another era has begun or the board is closed."""
        found = self._get(self._actor.wait.remote(era, topic, number))
        return None if found is None else replace(found, value=pickle.loads(found.value))

    def tell(self, line: object) -> None:
        """Leave a line for whoever reads them."""
        self._get(self._actor.tell.remote(pickle.dumps(line)))

    def line(self) -> Any:  # noqa: ANN401
        """The next line; None once the board is closed and all are read."""
        found = self._get(self._actor.line.remote())
        return None if found is None else pickle.loads(found)

    def close(self) -> None:
        """Whoever waits gets None from now on."""
        self._get(self._actor.close.remote())

    def end(self) -> None:
        """End the board's process."""
        if is_open():
            ray.kill(self._actor)

    def _get(self, answer: "ObjectRef[Any]") -> Any:  # noqa: ANN401
        try:
            return ray.get(answer)
        except RayTaskError:
            raise
        except (RayActorError, RayError) as error:
            raise BoardLostError(f"the board between driver, generators and train workers is gone: {error}") from error
