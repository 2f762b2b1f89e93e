"""Lines that tasks tell while they work, said by the driver while it waits for them.

>>> lines = Lines(print)  # doctest: +SKIP
>>> ray.get(task.remote(lines.sender))  # which calls sender("epoch 3 of 60")  # doctest: +SKIP
>>> lines.close()  # doctest: +SKIP
epoch 3 of 60
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from cluster.session import is_open

PAUSE = 1.0
"""Seconds that a task's line must come after its last one; any other is dropped."""


class _LineQueue:
    """The actor between them: lines in the order in which they came, None at the end."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()

    async def put(self, line: str | None) -> None:
        await self._lines.put(line)

    async def next(self) -> str | None:
        return await self._lines.get()


@dataclass
class LineSender:
    """Given to a task: called with a line, it has the driver say it, unless it spoke a moment ago."""

    queue: Any
    pause: float
    last: float = -math.inf

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if now - self.last < self.pause:
            return
        self.last = now
        try:
            ray.get(self.queue.put.remote(line))
        except RayError:
            self.pause = float("inf")  # nobody listens any more, which is no reason to stop working

    def __reduce__(self) -> tuple:
        return LineSender, (self.queue, self.pause)  # another task's is its own


class Lines:
    """The driver's end. ``awaited`` belongs into `ray.wait` beside the tasks; `read` when it is done."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._queue: Any = ray.remote(num_cpus=0)(_LineQueue).remote()
        self.sender = LineSender(self._queue, PAUSE)
        self.awaited: list[ObjectRef] = [self._queue.next.remote()]

    def read(self) -> None:
        """Say the line that was waited for, and wait for the next."""
        line = self._line()
        self.awaited = [] if line is None else [self._queue.next.remote()]
        if line is not None:
            self._say(line)

    def close(self) -> None:
        """Say what is left and end."""
        if self.awaited and is_open():
            self._queue.put.remote(None)
            while self.awaited:
                self.read()
            ray.kill(self._queue)

    def _line(self) -> str | None:
        try:
            return ray.get(self.awaited[0])
        except RayError:
            return None
