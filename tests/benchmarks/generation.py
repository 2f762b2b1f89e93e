"""How much of a bare loop's speed the generators on Ray keep, and how long a train worker waits for them.

    RAP_DATA_ROOT=... python tests/benchmarks/generation.py

One generator, one thread, against the same attacks in this process with nothing around them: attack steps a second,
from the submission of the units to the commit of their shards, in turn, medians. Then the loop itself, with one
generator and one train worker on two cores: the share of its time that the train worker waits. Writes
results/generation.json beside this file.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from loop_cost import setup_of

from cluster.pool import Pool
from cluster.refs import put
from cluster.session import session
from pipeline.defend.generators import AT_ONCE, GeneratorWorker
from pipeline.defend.loop import run_loop
from pipeline.placement import LoopWorkers
from stages.rap.attack import attack
from stages.rap.norms import draw_start
from stages.training.setup import Setup
from stages.training.versions import Version
from stages.trajectories.generate import Unit

RESULTS = Path(__file__).parent / "results" / "generation.json"
REPEATS = 7
UNITS = 24  # in a set
COHORTS = {"digits": 8, "mnist": 24, "cifar10-linf": 24}  # all that digits has; with 24, a set is one map over the pool
ROUNDS = {"digits": 60, "mnist": 40, "cifar10-linf": 20}  # of the loop
TWO_CORES = LoopWorkers(generators=1, generator_cpus=1, generator_gpus=0, trainer_cpus=1, trainer_gpus=0)
BEGUN = 0.25  # share of them that is left out: processes start, and nobody has a parent


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    with session(cpus=2):
        for preset in ROUNDS:
            found[preset] = {**speeds(preset), **waiting(preset)}
            print(preset, json.dumps(found[preset]), flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    RESULTS.write_text(json.dumps({"machine": machine, "load": os.getloadavg()[0], "cases": found}, indent=1) + "\n")


def speeds(preset: str) -> dict[str, object]:
    """Attack steps a second on Ray and bare, their ratio, and what of the difference is a busy second core's."""
    rounds = (REPEATS + 1) * UNITS
    with tempfile.TemporaryDirectory() as root:
        setup = setup_of(preset, rounds, root, cohorts=COHORTS[preset])
        version = Version.of(0, setup.learner().weights())
        arrays = put({name: value.numpy() for name, value in version.weights.items()})
        refs, previous, cohorts = (put(setup), arrays), {}, COHORTS[preset]
        ray, attacking, bare, beside = [], [], [], []
        pool = Pool(GeneratorWorker, size=1, cpus=1, max_in_flight=AT_ONCE, concurrency=AT_ONCE, name="generators")
        with pool:
            for turn in range(REPEATS + 1):
                began, rows = time.perf_counter(), []
                for first in range(turn * UNITS, (turn + 1) * UNITS, cohorts):  # an epoch: no unit is another's parent
                    units = units_of(setup, range(first, first + cohorts), version, previous)
                    for unit, (row, *_) in pool.map("generate", units, payload=lambda unit: (unit, refs)):
                        rows.append(row)
                        previous[unit.cohort] = unit.fingerprint
                seconds = time.perf_counter() - began
                ray.append(sum(row.n * row.k for row in rows) / seconds)
                attacking.append(sum(row.seconds for row in rows) / seconds)
                bare.append(bare_speed(setup, turn))
                with other_core_busy():
                    beside.append(bare_speed(setup, turn))
    ratios = [one / other for one, other in zip(ray[1:], bare[1:], strict=True)]
    shares = [one / other for one, other in zip(beside[1:], bare[1:], strict=True)]
    return {
        "steps a second, bare": round(statistics.median(bare[1:])),
        "steps a second, on Ray": round(statistics.median(ray[1:])),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(each, 3) for each in ratios],
        "attacking, share of the generator's time": round(statistics.median(attacking[1:]), 3),
        "bare beside a busy core, ratio": round(statistics.median(shares), 3),
    }


def units_of(setup: Setup, rounds: range, version: Version, previous: dict[int, str]) -> Iterator[Unit]:
    for number in rounds:
        yield from setup.units.of(number, version.fingerprint, previous)


@contextmanager
def other_core_busy() -> Iterator[None]:
    """Another process computes meanwhile: what that alone takes from a core that shares caches and more with it."""
    with subprocess.Popen([sys.executable, "-c", "while True: sum(range(100_000))"]) as process:
        try:
            yield
        finally:
            process.kill()


def bare_speed(setup: Setup, turn: int) -> float:
    """The attacks of a set of units in this process."""
    images, labels = torch.from_numpy(setup.train.images), torch.from_numpy(setup.train.labels)
    process, steps = setup.config.attack, 0
    robust = setup.build_faster(process)
    began = time.perf_counter()
    with process.applied():
        for number in range(UNITS):
            cohort = setup.schedule.cohorts[number % len(setup.schedule.cohorts)]
            start = draw_start(process, turn, setup.train.rows[cohort], tuple(images.shape[1:]))
            chosen = torch.from_numpy(cohort)
            attack(robust, images[chosen], labels[chosen], process, start, process.times(1))
            steps += len(cohort)
    return steps / (time.perf_counter() - began)


def waiting(preset: str) -> dict[str, object]:
    """The share of a train worker's time in which it waits for its round."""
    rounds, lines = ROUNDS[preset], []
    with tempfile.TemporaryDirectory() as root:
        setup = setup_of(preset, rounds, root)
        schedule = replace(setup.config.schedule, overlap_rounds=1)
        run_loop(replace(setup, config=replace(setup.config, schedule=schedule)), TWO_CORES, progress=lines.append)
    later = lines[int(BEGUN * rounds) :]
    seconds = sum(line["seconds"] for line in later)
    waited = sum(line["seconds"] * line["waiting"] for line in later)
    return {"seconds a round": round(seconds / len(later), 4), "waiting, share": round(waited / seconds, 3)}


if __name__ == "__main__":
    main()
