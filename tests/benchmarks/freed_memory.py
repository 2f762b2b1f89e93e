"""What it saves that workers keep freed memory: steps of attack and training of the MNIST preset, one thread.

    python tests/benchmarks/freed_memory.py

Each measurement is a process of its own, with glibc's defaults and with the session's settings in turn.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from cluster.session import ENVIRONMENT
from pipeline.artifacts import provenance
from pipeline.recipe import PRESETS
from stages.nets.cnn import CNN
from stages.nets.unet import UNet
from stages.rap.robust import RobustClassifier

RESULTS = Path(__file__).parent / "results" / "freed-memory.json"
SETTINGS = {name: value for name, value in ENVIRONMENT.items() if name.startswith("MALLOC_")}
CALLS = 9  # of each kind, of which the median counts


def measure() -> dict[str, float]:
    """Milliseconds an image of a step of attack and of an update, and page faults, in this process."""
    torch.set_num_threads(1)
    recipe = PRESETS["mnist"]()
    classifier = CNN(1, 28, 10, (0.13,), (0.31,)).requires_grad_(False)
    robust = RobustClassifier(UNet(recipe.adapter.unet(), 1), classifier, steps=recipe.attack.steps).eval()

    def attack(images: torch.Tensor, labels: torch.Tensor) -> None:
        leaf = images.clone().requires_grad_(True)
        torch.autograd.grad(functional.cross_entropy(robust(leaf), labels), leaf)

    def train(images: torch.Tensor, labels: torch.Tensor) -> None:
        robust.zero_grad(set_to_none=True)
        functional.cross_entropy(robust(images), labels).backward()

    found = {}
    for name, call, batch in (("attack", attack, recipe.attack.batch), ("train", train, recipe.schedule.batch)):
        robust.adapter.requires_grad_(name == "train")  # pyright: ignore[reportOptionalMemberAccess]
        found[name] = 1e3 * median_seconds(call, batch) / batch
    faults = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[7]
    return {**found, "faults": float(faults)}


def median_seconds(call: Callable[[torch.Tensor, torch.Tensor], None], batch: int) -> float:
    images, labels = torch.rand(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    seconds = []
    for _ in range(CALLS + 2):  # two to warm up
        began = time.perf_counter()
        call(images, labels)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[2:]))


def in_process(settings: dict[str, str]) -> dict[str, float]:
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    ended = subprocess.run(
        [sys.executable, __file__, "--here"], env={**kept, **settings}, capture_output=True, text=True, check=True
    )
    return json.loads(ended.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--here", action="store_true", help="measure in this process, as it was started")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure()))
        return
    began, rows = time.perf_counter(), []
    for repeat in range(arguments.repeats):
        rows.append({"default": in_process({}), "kept": in_process(SETTINGS)})
        print(f"{repeat + 1}/{arguments.repeats}: {rows[-1]}", flush=True)
    ratios = {
        kind: float(np.median([row["kept"][kind] / row["default"][kind] for row in rows]))
        for kind in ("attack", "train", "faults")
    }
    found = {"settings": SETTINGS, "runs": rows, "kept / default, median": ratios}
    found["provenance"] = provenance("cpu", time.perf_counter() - began)
    arguments.results.parent.mkdir(exist_ok=True)
    arguments.results.write_text(json.dumps(found, indent=1) + "\n")
    print(f"kept / default: {ratios}; {arguments.results}")


if __name__ == "__main__":
    main()
