"""What stored trajectories are good for: how soon they grow old, and what it is worth to start from another's.

    python -m pipeline.run
    python -m tests.benchmarks store-value rap-runs digits-665ec8f2

Age: the run's shipped model meets the adversaries that its earlier versions were attacked with, as they were stored,
after one fresh step from there, and after one from noise. Starts: other models train on persistent perturbations in
memory, one step a visit, from noise, from the last ones that the run has stored, and from one universal perturbation
of the run's model; all with the same images, batches and attack steps. The judge attacks all test images. CPU, one
thread; writes results/store_value.json beside this file.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int16, Int64
from rivals import RIVALS, InMemory
from time_to_robustness import judged, setup_of
from torch import Tensor
from torch.nn import functional

from pipeline.presets import PRESETS
from stages import numerics, randomness
from stages.data.datasets import ImageData, load_data
from stages.evaluation.accuracy import Accuracy
from stages.rap.attack import attack
from stages.rap.norms import draw_start
from stages.rap.robust import RobustClassifier
from stages.shipped import load_model
from stages.training.setup import Setup, load_trained
from stages.trajectories.dataset import TrajectoryDataset

RESULTS = Path(__file__).parent / "results" / "store_value.json"
AGES = (0, 5, 10, 20, 40, 80, 160, 250)  # rounds before the shipped version
ROUNDS = 4  # whose shards are one point
UPDATES = (40, 160)  # with 32 images each: one visit of every image, and four
UNIVERSAL = 100  # steps of the universal perturbation, on 128 images each
LEARNERS: dict[str, dict[str, Any]] = {
    "an adapter from another seed": {"seed": 1},
    "another adapter (tiny-half)": {"size": "tiny-half"},
    "the classifier itself": {"what": "classifier"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", help="root of a finished run of the digits preset")
    parser.add_argument("run", help="its name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(arguments.root) / "runs" / arguments.run
    model, data = load_model(folder / "model"), load_data(PRESETS["digits"]().data)
    version = json.loads((folder / "results.json").read_text())["run"]["selected"]["version"]
    with numerics.verdict(threads=1), tempfile.TemporaryDirectory() as scratch:
        setup = setup_of(PRESETS["digits"](), data, Path(scratch), rounds=1)
        ages = list(by_age(arguments.root, arguments.run, model, setup, version))
    begun = starts(arguments.root, arguments.run, model, version, data)
    found = {"run": arguments.run, "by age": ages, "starts": begun}
    machine = {"processor": platform.processor() or platform.machine(), "load": os.getloadavg()[0]}
    RESULTS.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")


def by_age(root: str, run: str, model: RobustClassifier, setup: Setup, version: int) -> Iterator[dict[str, Any]]:
    """Loss and robust accuracy of the shipped model on what was stored so many rounds before it."""
    process, train = setup.config.attack, setup.train
    for age in AGES:
        stored, rows = perturbations(root, run, range(version - age - ROUNDS, version - age), setup)
        positions = train.positions(rows)
        images, labels = torch.from_numpy(train.images[positions]), torch.from_numpy(train.labels[positions])
        noise = draw_start(process, age, rows, tuple(images.shape[1:]))
        clean = process.lattice.from_bytes(images)

        def meets(levels: Tensor, labels: Tensor = labels) -> dict[str, Any]:
            with torch.no_grad():
                logits = model(process.lattice.to_float(levels))
            right = (logits.argmax(1) == labels).numpy()
            return {"loss": round(float(functional.cross_entropy(logits, labels)), 3), **count(right)}

        low, high = process.limits(clean)
        point = {
            "rounds before": age,
            "as stored": meets((clean + stored).clamp(low, high)),
            "and one step": meets(attack(model, images, labels, process, stored, process.times(1)).levels[-1]),
            "noise and one step": meets(attack(model, images, labels, process, noise, process.times(1)).levels[-1]),
        }
        print(json.dumps(point), flush=True)
        yield point


def starts(root: str, run: str, model: RobustClassifier, version: int, data: ImageData) -> list[dict[str, Any]]:
    """Robust accuracy of other models after a few updates, from each kind of start."""
    found = []
    for learner, changes in LEARNERS.items():
        recipe = replace(PRESETS["digits"](), seed=changes.get("seed", 0))
        recipe = replace(
            recipe,
            train=replace(recipe.train, what=changes.get("what", "adapter")),
            adapter=replace(recipe.adapter, size=changes.get("size", recipe.adapter.size)),
        )
        with tempfile.TemporaryDirectory() as scratch:
            setup = setup_of(recipe, data, Path(scratch), rounds=1)
            kept = {
                "noise": None,
                "the run's perturbations": last_perturbations(root, run, version, setup),
                "one universal perturbation": universal(model, setup),
            }
            for start, perturbation in kept.items():
                for updates in UPDATES:
                    loop = InMemory(setup, RIVALS["persistent (ATTA)"], updates=updates)
                    if perturbation is not None:
                        loop.kept[:], loop.visits[:] = perturbation, 1
                    for _ in range(updates):
                        loop.update()
                    robust = load_trained(setup.build(), loop.learner.shipped())
                    verdict = judged(robust, recipe, data)
                    line = {"learner": learner, "start": start, "updates": updates, "judge": verdict["judge"]}
                    found.append(line)
                    print(json.dumps(line), flush=True)
    return found


def perturbations(
    root: str, run: str, rounds: range, setup: Setup
) -> tuple[Int16[Tensor, "segment channel height width"], Int64[np.ndarray, " segment"]]:
    """The last states that a run stored in some rounds, as levels minus the clean image's, and their rows."""
    data = TrajectoryDataset(root, run=run, rounds=rounds, state="last", images=setup.train)
    items = data.__getitems__(range(len(data)))
    unit = setup.config.attack.denominator
    moved = torch.stack([((item.state - item.image) * unit).round().to(torch.int16) for item in items])
    return moved, np.array([item.row for item in items])


def last_perturbations(root: str, run: str, version: int, setup: Setup) -> Int16[Tensor, "image channel height width"]:
    """The last one of every training image before a version."""
    epoch = 2 * len(setup.schedule.cohorts)
    moved, rows = perturbations(root, run, range(version - epoch, version), setup)
    kept = torch.zeros(setup.train.images.shape, dtype=torch.int16)
    kept[torch.from_numpy(setup.train.positions(rows))] = moved  # the later one of two, since they come in order
    return kept


def universal(model: RobustClassifier, setup: Setup) -> Int16[Tensor, "one channel height width"]:
    """One perturbation of all images, by signed steps along the sum of their gradients."""
    loop = InMemory(setup, RIVALS["one universal perturbation"], updates=1)
    loop.learner.robust = model
    images, labels = torch.from_numpy(setup.train.images), torch.from_numpy(setup.train.labels)
    for step in range(UNIVERSAL):
        chosen = torch.from_numpy(randomness.permutation(len(images), "universal", step)[:128])
        noise = torch.zeros(1, *images.shape[1:], dtype=torch.int16)
        loop._universal_step(images[chosen], labels[chosen], noise)
        loop.number += 1
    return loop.kept[:1]


def count(right: np.ndarray) -> dict[str, Any]:
    return Accuracy.from_mask(right).as_json()


if __name__ == "__main__":
    main()
