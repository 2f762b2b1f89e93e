"""What the driver can import, workers can: the folders that it was told to look into go with the session."""

import json
import os
import subprocess
import sys
from typing import Any


def import_environment(*, is_local: bool) -> dict[str, Any]:
    """The runtime environment in which workers look where this process looks; empty where they do anyway."""
    before, behind = _added(is_local=is_local)
    if not before and not behind:
        return {}

    # Inside of this function, so that it travels as code: workers may find this module only once it has run.
    def look_there_too() -> None:
        import sys

        known = set(sys.path)
        sys.path[:0] = [folder for folder in before if folder not in known]
        sys.path += [folder for folder in behind if folder not in known]

    return {"worker_process_setup_hook": look_there_too}


def _added(*, is_local: bool) -> tuple[list[str], list[str]]:
    """The folders of sys.path that a fresh Python does not have: those before the standard library, and those behind.

    Workers of a local session have this process's environment; those of a cluster need not have its PYTHONPATH.
    """
    ignoring = [] if is_local else ["-E"]
    asked = [sys.executable, *ignoring, "-c", "import json, sys; print(json.dumps(sys.path))"]
    fresh = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    # Ray itself tells workers of the folder of the script, and of the working directory.
    known = {_folder(path) for path in (*fresh, "", os.path.dirname(os.path.realpath(sys.argv[0])))}
    folders = [_folder(path) for path in sys.path]
    library = _folder(os.path.dirname(os.__file__))
    middle = folders.index(library) if library in folders else len(folders)
    before, behind = (
        [folder for folder in dict.fromkeys(part) if folder not in known and os.path.exists(folder)]
        for part in (folders[:middle], folders[middle:])
    )
    return before, behind


def _folder(path: str) -> str:
    return os.path.realpath(path or os.curdir)
