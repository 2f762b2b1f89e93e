"""What the README and those of the folders name is there, and their commands are those of this version."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline import evaluate_flags, flags, status, store
from pipeline.presets import PRESETS

PROJECT = Path(__file__).parents[2]
FOLDERS = (".", "pipeline", "stages/evaluation", "stages/trajectories", "cluster", "tests/benchmarks")
READMES = {folder: (PROJECT / folder / "README.md").read_text().replace("\\\n", " ") for folder in FOLDERS}
COMMANDS = sorted(
    {
        found.partition("#")[0].strip()
        for text in READMES.values()
        for found in re.findall(r"python -m pipeline\.((?:run|search|status|evaluate|store)\b[^`\n]*)", text)
        if "|" not in found and "--help" not in found  # usages, and what only prints one
    }
)


def test_the_readmes_have_commands_of_each_program():
    assert len(COMMANDS) > 20
    assert {each.split()[0] for each in COMMANDS} == {"run", "search", "status", "evaluate", "store"}


@pytest.mark.parametrize("text", COMMANDS)
def test_a_command_of_the_readmes_is_understood(text, monkeypatch):
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


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_a_readme_links_to_is_there(folder):
    links = re.findall(r"\]\(([^)\s]+)\)", READMES[folder])
    for link in (each for each in links if "://" not in each):
        path, _, heading = link.partition("#")
        target = PROJECT / folder / path if path else PROJECT / folder / "README.md"
        assert target.exists(), link
        if heading:
            assert heading in headings(target), link


def headings(file: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    named = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in named}


def test_the_benchmarks_that_the_readmes_name_are_there():
    text = " ".join(READMES.values())
    named = set(re.findall(r"tests/benchmarks/(\w+)\.py", text))
    named |= {each.replace("-", "_") for each in re.findall(r"python -m tests\.benchmarks ([\w-]+)", text)}
    assert len(named) > 8
    assert not {each for each in named if not (PROJECT / f"tests/benchmarks/{each}.py").exists()}
