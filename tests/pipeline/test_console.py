"""rap: every command by its name."""

import sys
import types
from importlib import metadata

import pytest

from pipeline import console


@pytest.mark.parametrize("name", ["run", "evaluate", "search", "store"])
def test_a_command_gets_the_arguments_behind_its_name(name, monkeypatch):
    asked = []
    module = types.ModuleType(f"pipeline.{name}")
    vars(module)["main"] = lambda argv: asked.append(argv) or 3
    module.__spec__ = types.SimpleNamespace(name=f"pipeline.{name}")  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, f"pipeline.{name}", module)
    monkeypatch.setattr(sys, "path", [""])
    assert console.main([name, "--root", "here"]) == 3
    assert asked == [["--root", "here"]]


def test_a_module_in_the_working_directory_is_found(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/somewhere"])
    with pytest.raises(SystemExit):
        console.main(["store", "--help"])
    assert sys.path[0] == ""


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        console.main(["train"])
    assert "rap has no command 'train'; there are run, evaluate, search" in capsys.readouterr().err


def test_the_version_is_that_of_the_distribution(monkeypatch, capsys):
    monkeypatch.setattr(metadata, "version", {"rap-pipeline": "1.2.3"}.__getitem__)
    assert console.main(["--version"]) == 0
    assert capsys.readouterr().out == "rap-pipeline 1.2.3\n"


def test_nothing_asked_prints_the_commands(capsys):
    assert console.main([]) == 0
    assert "usage: rap run|evaluate|" in capsys.readouterr().out
