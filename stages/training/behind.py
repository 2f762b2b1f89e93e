"""Work that goes on behind the computation: in its order, in one thread, and never far behind."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

AHEAD = 8  # pieces of work that may wait; each may hold a copy of the weights


class Behind:
    """A thread that does one thing after the other. An error of any of them is raised by the next call."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._waiting: deque[Future] = deque()

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until all is done; after an error of the caller's own, whatever has not begun is left out."""
        self._thread.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self._collect(0)

    def submit(self, work: Callable[[], Result]) -> "Future[Result]":
        """Have something done after all that was submitted before."""
        self._collect(AHEAD)
        self._waiting.append(future := self._thread.submit(work))
        return future

    def _collect(self, left: int) -> None:
        while len(self._waiting) > left or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
