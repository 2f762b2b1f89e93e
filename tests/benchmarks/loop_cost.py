"""What everything beside the networks costs: a round of the serial loop against one of a bare loop in memory.

    RAP_DATA_ROOT=... python tests/benchmarks/loop_cost.py

Both attack a cohort by one step from where its last visit ended and train on what came out, with the same networks,
attack and learner. The serial loop stores, checks and reads its shards, keeps versions and checkpoints, and writes
metrics and ledger, on local disk; the bare loop keeps a perturbation for every image, and nothing else. Seconds of
CPU time (other programs only disturb the clock), one round of each in turn, one thread; the median of their ratios, and
the ratio of the means, in which checkpoints count. Writes results/loop_cost.json beside this file.
"""

import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ablation import SMALLER, changed

from pipeline.presets import PRESETS
from stages import randomness
from stages.data.datasets import load_data
from stages.nets.architectures import build_classifier
from stages.rap.attack import attack
from stages.rap.norms import draw_start
from stages.storage import Storage
from stages.training.batches import TrainingBatch
from stages.training.rounds import run_serially
from stages.training.setup import Setup

RESULTS = Path(__file__).parent / "results" / "loop_cost.json"
ROUNDS = {"digits": 200, "mnist": 160, "cifar10-linf": 60}  # the last with networks for one core
NETWORKS = {**SMALLER, "mnist": {"adapter.size": "tiny-half"}}  # a cheap one, beside which storing shows
BEGUN = 0.25  # share of the rounds that is left out: no cohort has a parent in the first epoch, and caches are cold


def main() -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a process each, as a run has
        found = {preset: pool.apply(measure, (preset, rounds)) for preset, rounds in ROUNDS.items()}
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
    RESULTS.write_text(json.dumps({"machine": machine, "load": os.getloadavg()[0], "cases": found}, indent=1) + "\n")


def measure(preset: str, rounds: int) -> dict[str, object]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        setup = setup_of(preset, rounds, root)
        bare, stored, alone = bare_loop(setup), [], []
        last = time.process_time()

        def in_turn() -> bool:
            """Asked by the serial loop before each round: a bare round, and what else the process has used since the
            last one; what the loop does behind the computation goes on meanwhile, in threads of its own."""
            nonlocal last
            began = time.thread_time()
            bare()
            alone.append(time.thread_time() - began)
            now = time.process_time()
            stored.append(now - last - alone[-1])
            last = now
            return False

        run_serially(setup, stopped=in_turn)
    first = int(BEGUN * rounds)
    stored, alone = stored[first + 1 :], alone[first + 1 :]
    # of neighbours, since the machine's speed drifts
    ratios = [one / other for one, other in zip(stored, alone, strict=True)]
    more = {"median": statistics.median(ratios), "mean": statistics.fmean(stored) / statistics.fmean(alone)}
    result = {
        "images a round": setup.schedule.examples,
        "updates a round": setup.schedule.updates_per_round,
        "rounds": len(alone),
        "bare loop, ms": round(1e3 * statistics.median(alone), 1),
        "serial loop, ms": round(1e3 * statistics.median(stored), 1),
        "more CPU time in percent": {name: round(100 * (value - 1), 1) for name, value in more.items()},
    }
    print(preset, json.dumps(result), flush=True)
    return result


def setup_of(preset: str, rounds: int, root: str, *, cohorts: int = 8) -> Setup:
    """The preset's loop on a few cohorts, one a round, around a classifier with its first weights and with NETWORKS;
    that of CIFAR-10 is made smaller for one core, as in ablation.py."""
    recipe = changed(PRESETS[preset](), NETWORKS.get(preset, {}))
    data = load_data(recipe.data)
    torch.manual_seed(0)
    classifier = build_classifier(
        recipe.classifier, channels=data.channels, size=data.size, classes=10, mean=data.mean, std=data.std
    )
    config = recipe.loop()
    schedule = replace(config.schedule, rounds=rounds, round_cohorts=1)
    judge = replace(config.judge, images=1, every=rounds)
    return Setup(
        config=replace(config, schedule=schedule, judge=judge),
        train=data.train.take(np.arange(cohorts * config.schedule.cohort_images)),  # a few epochs in little time
        holdout=data.holdout,
        classifier=classifier.eval().requires_grad_(False),
        classifier_fingerprint="benchmark",
        root=Storage.at(root),
        name="runs/benchmark",
        keep_versions=False,
    )


def bare_loop(setup: Setup) -> Callable[[], None]:
    """A round of a loop that keeps everything in memory: each call visits the next cohort."""
    learner, process, schedule = setup.learner(), setup.config.attack, setup.schedule
    images, labels = torch.from_numpy(setup.train.images), torch.from_numpy(setup.train.labels)
    lattice, rows, number = process.lattice, setup.train.rows, 0
    kept = draw_start(process, 0, rows, tuple(images.shape[1:]))

    def visit_next() -> None:
        nonlocal number
        (visit,) = schedule.visits(number)
        chosen = torch.from_numpy(schedule.cohorts[visit.cohort])
        again = randomness.uniform(len(chosen), 0, "restart", number) < setup.config.schedule.restart
        restarted = chosen[torch.from_numpy(again)]
        kept[restarted] = draw_start(process, number, rows[restarted.numpy()], tuple(images.shape[1:]))
        begun, levels = attack(
            learner.robust, images[chosen], labels[chosen], process, kept[chosen], process.times(1)
        ).levels
        clean = lattice.from_bytes(images[chosen])
        kept[chosen] = levels - clean
        for batch in schedule.batches(number):
            places = torch.from_numpy(batch.places)
            of = labels[chosen[places]]
            states, starts, images_of = (lattice.to_float(each[places]) for each in (levels, begun, clean))
            learner.update(
                TrainingBatch(states=states, clean=images_of, labels=of, t=torch.ones_like(of), starts=starts)
            )
        number += 1

    return visit_next


if __name__ == "__main__":
    main()
