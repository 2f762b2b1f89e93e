"""What a command says while it works: lines that stay, and what is going on at the moment."""

import math
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

Say = Callable[[str], None]

PAUSE, SHARE = 5.0, 1 / 200
"""Seconds, and share of the time so far, after which a log is told again what is going on; the longer of the two."""


class Passing(Protocol):
    """Takes what is going on, and where that is known how much of it is done, in [0, 1]."""

    def __call__(self, text: str, share: float | None = None) -> None: ...


class Spoken:
    """Prints lines with the seconds since it began, and what is going on, so that nobody waits in silence.

    On a terminal that is a bar below the lines; in a log it is another line, where nothing was printed for a while.
    To be entered as a context; threads may share it.
    """

    def __init__(self) -> None:
        self._began = self._printed = self._since = time.monotonic()
        self._doing = ""
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._bar: Progress | None = None
        console = Console(file=sys.stdout)
        if console.is_terminal:
            columns = (BarColumn(bar_width=20), TextColumn("{task.fields[text]}", markup=False))
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=None, text="")

    def __enter__(self) -> "Spoken":
        if self._bar:
            self._bar.start()
        self._thread = threading.Thread(target=self._repeat, name="saying", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._bar:
            self._bar.stop()

    def __call__(self, line: str) -> None:
        """A line that stays."""
        now = time.monotonic()
        with self._lock:
            self._print(f"[{now - self._began:6.1f} s] {line}")

    def passing(self, text: str, share: float | None = None) -> None:
        """What is going on from now on."""
        with self._lock:
            if text != self._doing:
                self._doing, self._since = text, time.monotonic()
            if self._bar:
                self._bar.update(self._task, total=None if share is None else 1.0, completed=share or 0.0)

    def _repeat(self) -> None:
        while not self._ended.wait(0.5):
            now = time.monotonic()
            with self._lock:
                going, taken = now - self._began, now - self._since
                text = self._doing + (f", for {taken:.0f} s" if taken >= PAUSE else "")
                if self._bar:
                    self._bar.update(self._task, text=text and f"{going:.0f} s: {text}")
                elif text and now - self._printed >= max(PAUSE, SHARE * going) - 0.5:
                    self._print(f"[{going:6.1f} s]   {text}")

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)


def passing(say: Say) -> Passing:
    """How to tell ``say`` what is going on; of a plain function as a line, after a pause."""
    if isinstance(say, Spoken):
        return say.passing
    last = -math.inf

    def tell(text: str, share: float | None = None) -> None:
        nonlocal last
        if time.monotonic() - last >= PAUSE:
            last = time.monotonic()
            say(text)

    return tell
