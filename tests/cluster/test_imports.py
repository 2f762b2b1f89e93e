"""What the driver imports from folders that it was told to look into, workers import too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.imports import import_environment

FORWARD = """
import helpers_of_mine

class Model:
    def answer(self):
        return helpers_of_mine.ANSWER
"""
# The project, and a source of the user's, are found by what the script itself adds; a module of the standard library's
# name lies where it was added behind, and one of the project's name where it was added in front.
SCRIPT = """
import sys
sys.path.insert(0, {project!r})
sys.path.insert(0, {first!r})
sys.path.append({last!r})
from cluster.refs import put
from cluster.session import session
from cluster.tasks import run_tasks
from source_of_mine import Model

class OfTheScript(Model):
    def answer(self):
        return super().answer() + 1

def ask(refs):
    import random
    return sum(ref.get().answer() for ref in refs) + hasattr(random, "random")

with session(cpus=1):
    refs = [put(Model()), put(OfTheScript())]
    print(list(run_tasks(ask, [refs], cpus=1))[0][1])
"""


@pytest.mark.ray
def test_workers_import_what_a_script_found_in_folders_that_it_added(tmp_path: Path) -> None:
    first, last, elsewhere = tmp_path / "first", tmp_path / "last", tmp_path / "elsewhere"
    for folder in (first, last, elsewhere):
        folder.mkdir()
    (first / "source_of_mine.py").write_text(FORWARD)
    (last / "helpers_of_mine.py").write_text("ANSWER = 20")
    (last / "random.py").write_text("")
    project = str(Path(__file__).parents[2])
    (elsewhere / "script.py").write_text(SCRIPT.format(project=project, first=str(first), last=str(last)))
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.stdout, done.stderr) == ("42\n", "")


def test_nothing_is_sent_where_workers_look_there_anyway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    assert import_environment(is_local=True) == {}
    assert import_environment(is_local=False) != {}
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_environment(is_local=True) != {}
