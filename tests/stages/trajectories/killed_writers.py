"""Run as a program: writers of one unit, each killed with -9 at another moment of its commit.

``python killed_writers.py ROOT MODULE.FUNCTION ...`` forks a writer for each named function, which generates the
unit below ROOT/MODULE.FUNCTION and is killed when it calls that function.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

from generated_units import make, unit_of

from stages.trajectories import disk


def die(*arguments: object, **options: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half_and_die(root: Path, files: dict[str, bytes]) -> None:
    disk.write_files(root, dict(list(files.items())[: len(files) // 2]))
    die()


def writer(root: Path, moment: str) -> None:
    module, *path, name = moment.split(".")
    holder = importlib.import_module(f"stages.trajectories.{module}")
    for part in path:
        holder = getattr(holder, part)
    setattr(holder, name, write_half_and_die if name == "write_files" else die)
    make(unit_of(), root)


if __name__ == "__main__":
    for moment in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            writer(Path(sys.argv[1]) / moment, moment)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(moment, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "lived")
