"""The README's commands are those of this version."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline import evaluate_flags, flags, status, store
from pipeline.recipe import PRESETS

README = (Path(__file__).parents[2] / "README.md").read_text().replace("\\\n", " ")
COMMANDS = sorted(
    {
        found.partition("#")[0].strip()
        for found in re.findall(r"python -m pipeline\.((?:run|search|status|evaluate|store)\b[^`\n]*)", README)
        if "|" not in found and "--help" not in found  # usages, and what only prints one
    }
)


def test_the_readme_has_commands_of_each_program():
    assert len(COMMANDS) > 20
    assert {each.split()[0] for each in COMMANDS} == {"run", "search", "status", "evaluate", "store"}


@pytest.mark.parametrize("text", COMMANDS)
def test_a_command_of_the_readme_is_understood(text, monkeypatch):
    program, *argv = shlex.split(text)
    monkeypatch.setattr(flags, "read_recipe", lambda file: ("digits", PRESETS["digits"]()))  # of a search's best.json
    argv = ["3" if each == "N" else each for each in argv]  # of `--table N`
    if program in ("run", "search"):
        assert flags.parse(argv).recipe
    elif program == "status":
        assert status.parse(argv).root == "rap-runs"
    elif program == "evaluate":
        assert evaluate_flags.parse(argv or ["--model", "m:b"]).model
    else:
        assert store.parse(argv).root == "rap-runs"
