"""AutoAttack on two workers against the official code called chunk by chunk in one process, as a share of the ceiling.

    python tests/benchmarks/autoattack_workers.py [--model RUN/model]

Without a model, a digits CNN that is trained in seconds; with one, a robust classifier of digits, whose chunks take
minutes, so that the start of a chunk's process counts for little.

The ceiling is how much two plain processes get done of the official code's work in the time of one, measured here and
now: two cores of one machine share caches, memory and clock. Sets of three runs are repeated in turn, so that a slow
minute of the machine meets all of them. A fresh store each time; starting Ray is not counted, a chunk's process is.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from pyautoattack import AutoAttack
from torch import nn

from cluster.session import session
from pipeline.artifacts import provenance
from pipeline.flags import WorkersConfig
from pipeline.measure.evaluation import evaluate, parts, subject_of
from pipeline.placement import place_for_tasks
from stages.data.datasets import DataConfig, load_data
from stages.evaluation.accuracy import QUANTILE, to_float
from stages.evaluation.autoattack import AutoAttackConfig
from stages.evaluation.measurement import Measurement
from stages.nets.architectures import ClassifierConfig, build_classifier
from stages.rap.threat import ThreatModel
from stages.shipped import load_model
from stages.training.base_classifier import train_classifier

RESULTS = Path(__file__).parent / "results"
TARGET = 0.9  # of the ceiling
DATA = DataConfig(name="digits")


@cache
def trained(epochs: int = 8) -> nn.Module:
    """The digits preset's classifier, trained for a few seconds; without gradients for its weights, which the official
    code would compute and throw away, so that both do the same work."""
    data, config = load_data(DATA), ClassifierConfig(epochs=epochs, batch=64)

    def build() -> nn.Module:
        return build_classifier(config, channels=1, size=8, classes=10, mean=data.mean, std=data.std)

    state = train_classifier(config, data.train, seed=0, build=build, device="cpu", progress=lambda line: None)
    model = build()
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Plan:
    """What is attacked: the CNN, or the model that was saved in a directory."""

    saved: str | None
    measurement: Measurement

    def model(self) -> nn.Module:
        return load_model(self.saved) if self.saved else trained()


def planned(saved: str | None, images: int, chunk: int) -> Plan:
    threat = ThreatModel(norm="Linf", radius=0.2 if saved else 0.1)
    attack = AutoAttackConfig(batch=chunk)
    return Plan(saved, Measurement(name="autoattack", attack=attack, threat=threat, images=images, chunk=chunk))


def official(plan: Plan, share: slice = slice(None)) -> list[bool]:
    """The official code, chunk by chunk, on some of the chunks."""
    torch.set_num_threads(1)
    model, threat, robust = plan.model(), plan.measurement.threat, []
    for part in list(parts(load_data(DATA).test, plan.measurement))[share]:
        attack = AutoAttack(model, norm="Linf", eps=threat.radius, seed=0, version="standard")
        images, labels = to_float(torch.from_numpy(part.images)), torch.from_numpy(part.labels)
        _, predicted = attack.run_standard_evaluation(images, labels, batch_size=plan.measurement.chunk)
        robust += (predicted == labels).tolist()
    return robust


def timed_official(plan: Plan, share: slice, gate, seconds) -> None:
    """In a process of its own: build the model, wait for the other, and time the work alone."""
    torch.set_num_threads(1)
    plan.model()
    gate.wait()
    began = time.perf_counter()
    official(plan, share)
    seconds.put(time.perf_counter() - began)


def in_processes(plan: Plan, shares: list[slice]) -> float:
    """Seconds until plain processes, which start together, have done their shares."""
    context = multiprocessing.get_context("spawn")
    gate, seconds = context.Barrier(len(shares)), context.Queue()
    processes = [context.Process(target=timed_official, args=(plan, share, gate, seconds)) for share in shares]
    for process in processes:
        process.start()
    longest = max(seconds.get() for _ in processes)
    for process in processes:
        process.join()
    return longest


def on_workers(plan: Plan) -> tuple[float, list[bool]]:
    """Seconds of the evaluation on two Ray workers, and the verdicts."""
    test, model = load_data(DATA).test, plan.model()
    with tempfile.TemporaryDirectory() as root, session(cpus=2) as cluster:
        place = place_for_tasks(cluster, WorkersConfig(device="cpu"))
        subjects, began = {"model": subject_of(model, test.images)}, time.perf_counter()
        found = evaluate(
            subjects, test, [plan.measurement], root=Path(root), workers=lambda: place, say=lambda line: None
        )
        return time.perf_counter() - began, found["model"]["autoattack"].robust_mask.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a robust classifier of digits, L-inf 0.2, as RUN/model")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=AutoAttackConfig().chunk, help="by default, the preset's")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    plan = planned(arguments.model, arguments.images, arguments.chunk)
    subject = "robust" if arguments.model else "cnn"
    torch.set_num_threads(1)
    plan.model()
    rows = []
    for repeat in range(arguments.repeats):
        began = time.perf_counter()
        expected = official(plan)
        one = time.perf_counter() - began
        two = in_processes(plan, [slice(0, None, 2), slice(1, None, 2)])
        workers, verdicts = on_workers(plan)
        row = {"one": one, "two": two, "workers": workers, "same": verdicts == expected}
        row["of_ceiling"] = two / workers
        rows.append(row)
        print(
            f"{repeat + 1}/{arguments.repeats}: one process {one:.1f} s; two {two:.1f} s, the ceiling "
            f"{one / two:.2f}x; two workers {workers:.1f} s, {one / workers:.2f}x, {two / workers:.2f} of the ceiling; "
            f"verdicts {'equal' if row['same'] else 'DIFFER'}",
            flush=True,
        )
    ratios = np.array([row["of_ceiling"] for row in rows])
    spread = QUANTILE * ratios.std(ddof=1) / np.sqrt(len(ratios)) if len(ratios) > 1 else None
    found = {
        "model": subject,
        "images": arguments.images,
        "chunk": arguments.chunk,
        "runs": rows,
        "of_ceiling": {"mean": float(ratios.mean()), "half_width_95": None if spread is None else float(spread)},
        "target": TARGET,
        "provenance": provenance("cpu", sum(row["one"] + row["two"] + row["workers"] for row in rows)),
    }
    results = RESULTS / f"autoattack-workers-{subject}.json"
    results.write_text(json.dumps(found, indent=1))
    print(f"{ratios.mean():.2f} of the ceiling (target {TARGET}); {results}")


if __name__ == "__main__":
    main()
