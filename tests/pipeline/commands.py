"""The command at a size for tests, and what it leaves."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.run import main
from stages.storage import Storage
from stages.training.journal import Journal
from stages.trajectories.ledger import Ledger
from stages.trajectories.shards import LedgerRow

TINY = {
    "workers.cpus": 2,
    "data.train-images": 160,
    "classifier.epochs": 4,
    "search.trials": 2,
    "search.rounds": 4,
    "search.first-rounds": 2,
    "schedule.rounds": 8,
    "schedule.cohort-images": 32,
    "schedule.round-cohorts": 2,
    "schedule.batch": 32,
    "judge.images": 32,
    "judge.every": 4,
    "checkpoint-rounds": 3,
    "evaluation.images": 8,
    "evaluation.chunk": 8,
    "evaluation.batch": 8,
    "evaluation.pgd-images": 64,
    "checks.size.images": 8,
    "checks.size.steps": 12,
    "checks.size.short-steps": 6,
    "checks.size.restarts": 2,
    "checks.size.queries": 30,
    "checks.size.draws": 5,
    "checks.size.radii": 2,
    "checks.size.gradient-images": 4,
    "checks.size.binarized": 4,
    "checks.size.inner": 16,
    "checks.others": 0,
    "checks.budget": 0,
}

# For tests of what comes before the evaluation.
BRIEFLY = [
    *("--evaluation.version", "custom", "--evaluation.attacks", "apgd-ce", "--evaluation.images=2"),
    *("--evaluation.pgd-images=8", "--checks.size.images=2"),
]


def flags_of(settings: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def run_here(root: Path, *arguments: str) -> None:
    """The command in this process, on the session that is open: the same code, without a Ray and imports of its own."""
    assert main([*arguments, "--root", str(root)]) == 0


def run_apart(program: Path, *arguments: object) -> list[str]:
    """What a program of the tests prints, which starts a Ray of its own; it imports what they import."""
    with started_apart(program, *arguments) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0
    return printed.splitlines()


def started_apart(program: Path, *arguments: object) -> subprocess.Popen[str]:
    """The process of such a program; its errors are printed among the test's own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_AUTH_TOKEN": "0" * 64}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def results_of(root: Path, name: str = "digits-*") -> dict:
    (path,) = root.glob(f"runs/{name}/results.json")
    return json.loads(path.read_text())


def last_version(root: Path) -> str:
    """The fingerprint of the weights after the last of eight rounds."""
    (run,) = root.glob("runs/digits-*")
    line = Journal(Storage.at(run)).lines()[-1]
    assert line["round"] == 7
    return line["weights"]


def rows_of(root: Path) -> list[LedgerRow]:
    """The ledger of the one run of the preset."""
    (run,) = root.glob("runs/digits-*")
    return Ledger(Storage.at(root), run.name).rows()
