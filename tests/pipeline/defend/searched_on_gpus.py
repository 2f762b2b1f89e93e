"""Searches on the one logical GPU of a Ray of its own: which GPU each trial was given, and how many were there at once.

Run as a program by test_searching.py: Ray counts GPUs without looking for any.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from loops import loop_workers, setups
from test_searching import recipe_of

import cluster.tuner
from cluster.session import PlacementError, session
from pipeline.defend.searching import search
from pipeline.placement import Workers

NOTES = Path(sys.argv[1]) / "notes"


class Noted:
    """A trial that writes down its GPU when it begins, and that it has ended."""

    def __init__(self, trial: Callable[[Any], None]) -> None:
        self.trial, self.notes = trial, str(NOTES)

    def __call__(self, asked: object) -> None:
        self.note(f"begins {ray.get_gpu_ids()}")
        self.trial(asked)
        self.note("ended")

    def note(self, what: str) -> None:
        with open(self.notes, "a") as file:
            file.write(f"{what}\n")


def at_once(lines: list[str]) -> int:
    """The most trials that were there at the same time."""
    there, most = 0, 0
    for line in lines:
        there += 1 if line.startswith("begins") else -1
        most = max(most, there)
    return most


def searched(gpus: float) -> str:
    """A search of which each trial has so many GPUs."""
    root, trials = Path(sys.argv[1]) / f"{gpus:g}", 3
    setup = setups()(root)
    workers = Workers(device="cpu", cpus=1, gpus=0, loop=loop_workers(1), trial_gpus=gpus, trials=None)
    recipe = recipe_of(trials, rounds=2)
    try:
        search(setup, recipe, lambda: workers, lambda line: None, folder=setup.root.below("searches/test"))
    except PlacementError as error:
        return f"refused, {'after' if NOTES.exists() else 'before'} a trial began: {error}"
    lines = NOTES.read_text().splitlines()
    NOTES.unlink()
    given = sorted({line.removeprefix("begins ") for line in lines} - {"ended"})
    return f"{lines.count('ended')} of {trials} trials ended, {at_once(lines)} at once, on {', '.join(given)}"


if __name__ == "__main__":
    run = cluster.tuner.run_trials
    cluster.tuner.run_trials = lambda trial, *arguments, **options: run(Noted(trial), *arguments, **options)
    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    with session():
        for gpus in map(float, sys.argv[2:]):
            print(f"{gpus:g} GPUs a trial: {searched(gpus)}", flush=True)
