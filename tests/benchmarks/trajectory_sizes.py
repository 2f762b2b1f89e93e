"""Bytes a trajectory, and the speeds of writing, reading and decoding, on real attacks of real images.

    RAP_DATA_ROOT=... python tests/benchmarks/trajectory_sizes.py

Classifiers without adapter, trained here for two epochs on 4,000 images: weak ones, and for the residual
network a hard case, since its gradients' signs flip often. Fastest of ten calls, one thread; writes
results/trajectory_sizes.json beside this file.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.data.datasets import DataConfig, ImageData, load_data
from stages.fingerprint import canonical_json
from stages.nets.architectures import ClassifierConfig
from stages.nets.cnn import CNN
from stages.nets.resnet import ResNet18
from stages.rap.attack import attack
from stages.rap.norms import draw_start
from stages.rap.process import AttackConfig
from stages.rap.robust import RobustClassifier
from stages.rap.threat import Norm, ThreatModel
from stages.storage import Storage
from stages.training.base_classifier import train_classifier
from stages.trajectories.codec import Segments, encode
from stages.trajectories.shards import LedgerRow, Shard, pack_shard, read_shard, write_shard

RESULTS = Path(__file__).parent / "results" / "trajectory_sizes.json"
STEPS = 20


@dataclass(frozen=True)
class Case:
    data: str
    norm: Norm
    radius: float
    step: float
    steps: int
    warm: bool
    examples: int


CASES = (
    Case("digits", "Linf", 0.2, 0.05, 3, False, 256),
    Case("mnist", "Linf", 76 / 255, 5 / 255, STEPS, False, 512),
    Case("mnist", "Linf", 76 / 255, 38 / 255, 1, True, 512),
    Case("mnist", "L2", 2.0, 2.5 * 2.0 / STEPS, STEPS, False, 512),
    Case("cifar10", "Linf", 8 / 255, 2 / 255, STEPS, False, 256),
    Case("cifar10", "Linf", 8 / 255, 4 / 255, 1, True, 256),
    Case("cifar10", "L2", 0.5, 2.5 * 0.5 / STEPS, STEPS, False, 256),
)


def main() -> None:
    torch.set_num_threads(1)
    load, measured = os.getloadavg()[0], []
    for name in ("digits", "mnist", "cifar10"):
        data = load_data(DataConfig(name=name, train_images=1000 if name == "digits" else 4000))
        classifier = trained(data)
        for case in CASES:
            if case.data == name:
                measured.append(measure(case, *attacked(case, data, classifier)))
                print(json.dumps(measured[-1]), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": 1,
        "load before and after": [load, os.getloadavg()[0]],
    }
    RESULTS.write_text(json.dumps({"machine": machine, "cases": measured}, indent=2) + "\n")


def trained(data: ImageData) -> nn.Module:
    def build() -> nn.Module:
        if data.channels == 1:
            return CNN(1, data.size, 10, data.mean, data.std)
        return ResNet18(data.channels, 10, mean=data.mean, std=data.std, width=16)

    classifier = build()
    config = ClassifierConfig(epochs=2)
    classifier.load_state_dict(train_classifier(config, data.train, seed=0, build=build))
    return classifier.eval().requires_grad_(False)


def attacked(case: Case, data: ImageData, classifier: nn.Module) -> tuple[Segments, Tensor]:
    """Segments of the attack, with a derived start or after five steps of their own, and clean levels."""
    threat = ThreatModel(norm=case.norm, radius=case.radius)
    process = AttackConfig(steps=STEPS, step_size=case.step).process(threat)
    robust = RobustClassifier(None, classifier, steps=STEPS, threat=threat)
    index = torch.from_numpy(data.train.rows[: case.examples])
    images = torch.from_numpy(data.train.images[: case.examples])
    labels = torch.from_numpy(data.train.labels[: case.examples])
    clean, taken = process.lattice.from_bytes(images), torch.zeros_like(index)
    start = draw_start(process, 7, index.numpy(), tuple(images.shape[1:]))
    if case.warm:
        start = attack(robust, images, labels, process, start, process.times(5)).levels[-1] - clean
        taken = taken + 5
    trajectory = attack(robust, images, labels, process, start, process.times(case.steps, taken))
    seed = 7 if case.norm == "Linf" and not case.warm else None
    return encode(trajectory, clean, process=process, index=index, taken=taken, start_seed=seed), clean


def measure(case: Case, segments: Segments, clean: Tensor) -> dict[str, object]:
    row = row_of(segments)
    with tempfile.TemporaryDirectory() as folder:
        storage, content = Storage.at(folder), pack_shard(Shard(row, segments))
        write = fastest(lambda: write_shard(storage, row.fingerprint, pack_shard(Shard(row, segments))))
        read = fastest(lambda: read_shard(storage, row.fingerprint))
    t = torch.randint(0, segments.steps + 1, (len(segments),), generator=torch.Generator().manual_seed(0))
    decode = fastest(lambda: segments.states_at(clean, t))
    size, plain = len(content) / len(segments), 4 * clean[0].numel() * (segments.steps + 1)
    return {
        "data": case.data,
        "attack": f"{case.norm} {case.radius:.3g}, {segments.steps} steps, {'warm' if case.warm else 'fresh'}",
        "examples": len(segments),
        "bytes a trajectory": round(size),
        "float32 bytes": plain,
        "times smaller": round(plain / size, 1),
        **gradients(segments),
        "write ms": round(1e3 * write, 1),
        "read ms": round(1e3 * read, 1),
        "random states decoded a second": round(len(segments) / decode),
    }


def row_of(segments: Segments) -> LedgerRow:
    """A row of the usual length, with numbers of no meaning."""
    k = segments.steps
    return LedgerRow(
        **{name: "0" * 32 for name in ("fingerprint", "parent", "weights", "data", "last_states")},
        **dict.fromkeys(("round", "unit", "cohort", "visit", "version", "first_index", "last_index", "fresh"), 0),
        **dict.fromkeys(("success", "loss", "zero_gradients"), (0.125,) * k),
        n=len(segments),
        k=k,
        run="benchmark",
        attack=canonical_json(segments.process),
        seconds=0.123456789,
        worker="host:12345",
        created="2026-01-01T00:00:00.000+00:00",
    )


def gradients(segments: Segments) -> dict[str, float]:
    if segments.signs is None:
        return {}
    flips = (segments.signs[1:] != segments.signs[:-1]).float().mean()
    zeros = (segments.signs == 0).float().mean()
    return {"signs that flip a step": round(float(flips), 3), "zero gradients": round(float(zeros), 3)}


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of 10 calls: other programs can only slow a call down."""
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
