"""The command at a size for tests, and what it leaves."""

import json
import subprocess
import sys
from pathlib import Path

TINY = {
    "workers.cpus": 2,
    "data.train-images": 160,
    "classifier.epochs": 4,
    "search.trials": 2,
    "search.rounds": 3,
    "schedule.rounds": 8,
    "schedule.examples": 64,
    "schedule.unit-examples": 32,
    "schedule.batch": 32,
    "judge.images": 32,
    "judge.every": 4,
    "checkpoint-rounds": 3,
    "evaluation.images": 8,
    "evaluation.chunk": 4,
    "evaluation.batch": 4,
    "evaluation.pgd-images": 64,
    "checks.size.images": 8,
    "checks.size.steps": 12,
    "checks.size.short-steps": 6,
    "checks.size.queries": 30,
    "checks.others": 0,
    "checks.budget": 0,
}

# For tests of what comes before the evaluation.
BRIEFLY = [
    *("--evaluation.version", "custom", "--evaluation.attacks", "apgd-ce", "--evaluation.images=2"),
    *("--evaluation.pgd-images=8", "--checks.size.images=2"),
]


def command(root: Path, *flags: str) -> list[str]:
    tiny = [f"--{name}={value}" for name, value in TINY.items()]
    return [sys.executable, "-m", "pipeline.run", *tiny, "--root", str(root), *flags]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def results_of(root: Path) -> dict:
    (path,) = root.glob("runs/digits-*/results.json")
    return json.loads(path.read_text())


def last_version(root: Path) -> bytes:
    (path,) = root.glob("runs/digits-*/versions/8/weights.safetensors")
    return path.read_bytes()
