"""What a command says while it works: lines that stay, and what is going on at the moment."""

import math
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from stages.storage import Storage
from stages.storage_errors import StorageError

Say = Callable[[str], None]

PAUSE, SHARE = 5.0, 1 / 200
"""Seconds, and share of the time so far, after which a log is told again what is going on; the longer of the two."""

LOG = "run.log"
"""Where a run's or a search's folder keeps what was said."""


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
        self._log: Log | None = None
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
        if self._log:
            self._log.end(f"{type(error).__name__}: {error}" if error else "")

    def __call__(self, line: str) -> None:
        """A line that stays."""
        now = time.monotonic()
        with self._lock:
            text = f"[{now - self._began:6.1f} s] {line}"
            self._print(text)
            if self._log:
                self._log.add(text)

    def log_in(self, folder: Storage) -> None:
        """From now on, keep all lines that stay in the folder's log as well, unless they are kept elsewhere already."""
        self._log = self._log or Log(folder)

    def keep(self, text: str) -> None:
        """What is printed once all is over belongs into the log as well."""
        if self._log:
            self._log.add(text)

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
                if not self._doing:
                    continue
                going, taken = now - self._began, now - self._since
                text = self._doing + (f", for {taken:.0f} s" if taken >= PAUSE else "")
                if self._bar:
                    self._bar.update(self._task, text=f"{going:.0f} s: {text}")
                elif now - self._printed >= max(PAUSE, SHARE * going) - 0.5:
                    self._print(f"[{going:6.1f} s]   {text}")

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)


class Log:
    """The lines of all calls in one file of a folder, written anew as they come, every PAUSE seconds at most."""

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self._text = (folder.find(LOG) or b"").decode(errors="replace")
        self._written = time.monotonic()
        self.add(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, process {os.getpid()}: {shlex.join(sys.argv)}")

    def add(self, line: str) -> None:
        self._text += f"{line}\n"
        if time.monotonic() - self._written >= PAUSE:
            self._write()

    def end(self, line: str) -> None:
        self._text += f"{line}\n" if line else ""
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with suppress(StorageError):  # a log must not end what it tells of
            self._folder.put(LOG, self._text.encode(errors="backslashreplace"))


def log_in(folder: Storage, say: Say) -> None:
    """Keep what a command says in a folder's log; a plain function's lines are its owner's."""
    if isinstance(say, Spoken):
        say.log_in(folder)


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
