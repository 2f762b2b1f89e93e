"""Paths of this machine as a user writes them, or the reason why one can be none.

>>> local_path("~nobody-here/model", "--model")
Traceback (most recent call last):
ValueError: --model ~nobody-here/model is no path of this machine (Could not determine home directory.): give another
"""

import re
from contextlib import suppress
from pathlib import Path

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # with one slash, to which a Path shortens the two
SHOWN = 100  # characters of a path in a message


def local_path(named: str | Path, name: str) -> Path:
    """The path, with the home directory for ~, of what need not be there. ``name`` is what whoever asks calls it.

    Raises ValueError, which begins with both, for a URL and for what the system takes for no path.
    """
    written = str(named)
    shown = written if len(written) <= SHOWN else f"{written[:SHOWN]}... ({len(written):,} characters)"
    called = f"{name} {shown}".strip()
    if URL.match(written):
        raise ValueError(f"{called} is a URL: copy what lies there to this machine, and give its path")
    try:
        path = Path(written).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, RuntimeError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise ValueError(f"{called} is no path of this machine ({reason}): give another") from error
    return path
