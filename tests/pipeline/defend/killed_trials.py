"""What kills the processes of a search's trials."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.storage import Storage
from stages.training.journal import Journal


@contextmanager
def killing(root: Path, kills: int) -> Iterator[list[int]]:
    """Kills so many processes that train a trial, each as soon as it has written down a round."""
    killed, over = [], threading.Event()

    def kill() -> None:
        while len(killed) < kills and not over.wait(0.02):
            for path in root.glob("trials/*/metrics/*.jsonl"):
                lines = Journal(Storage.at(path.parents[1])).lines()
                process = int(lines[-1]["worker"].rpartition(":")[2]) if lines else os.getpid()
                if process not in (os.getpid(), *killed) and len(killed) < kills:
                    killed.append(process)
                    os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
