"""A finished run for tests of what is stored, and the command on it."""

import json
from pathlib import Path

from pipeline.store import main
from stages.data.datasets import DataConfig
from stages.fingerprint import canonical
from stages.training.setup import Setup

RECIPE = {"data": canonical(DataConfig(name="digits", train_images=96)), "schedule": {"rounds": 6}}


def write_receipt(directory: Path) -> dict:
    (directory / "verdict.npz").write_bytes(b"adversaries")
    return {}


def finish(setup: Setup, artifacts: list[str]) -> None:
    robust = {"value": 0.5, "images": 8}
    for name, content in {
        "recipe.json": {"preset": "digits", "recipe": RECIPE},
        "results.json": {"artifacts": artifacts, "robust_accuracy": robust},
    }.items():
        setup.run.put(name, json.dumps(content).encode())


def store(setup: Setup, *arguments: str) -> int:
    return main([str(setup.root), *arguments])


def objects(setup: Setup) -> set[str]:
    return {each.key for each in setup.root.entries() if each.key != "runs/run/lock"}
