"""rap: the commands of the project by name: `rap evaluate` is `python -m pipeline.evaluate`."""

import sys
from importlib import import_module, metadata
from importlib.util import find_spec

from pipeline.exits import fail

COMMANDS = ("run", "evaluate", "search", "status", "store")
DISTRIBUTION = "rap-pipeline"


def main(argv: list[str] | None = None) -> int:
    """The command that the first argument names; its exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    known = [each for each in COMMANDS if find_spec(f"pipeline.{each}")]
    if name == "--version":
        print(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
        return 0
    if name in ("-h", "--help"):
        print(f"usage: rap {'|'.join(known)} [--flags]\n       rap COMMAND --help\n       rap --version")
        return 0
    if name not in known:
        fail(f"rap has no command {name!r}; there are {', '.join(known)}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a user's module:function lies in the working directory, as for python -m
    return import_module(f"pipeline.{name}").main(rest)
