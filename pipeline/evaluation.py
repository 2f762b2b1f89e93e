"""The final evaluation, fanned out in evaluation chunks, each with its receipt, each verified again.

A chunk is attacked in a fresh process and leaves an artifact, so a killed evaluation repeats only what was
running, and the same evaluation again attacks nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cluster.pool import Ref, put, run_tasks
from pipeline.artifacts import Artifact, Store
from pipeline.recipe import EvaluationConfig
from pipeline.workers import Workers
from stages import randomness
from stages.data.splits import Split
from stages.evaluation.accuracy import Accuracy, clean_mask
from stages.evaluation.autoattack import AutoAttackConfig, attack_chunk, square_flag
from stages.evaluation.pgd import PGDConfig, pgd_mask
from stages.evaluation.verdict import verify_chunk
from stages.fingerprint import fingerprint
from stages.rap.threat import ThreatModel
from stages.threads import cpu_threads

FORMAT = 1
PGD_CHUNK = 250  # images of a chunk under PGD, which costs a hundredth of AutoAttack


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model under evaluation, in eval mode, with the fingerprint that names all of it."""

    model: nn.Module
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Images attacked together, by AutoAttack or PGD, and where the receipt goes."""

    root: str
    model: str
    threat: ThreatModel
    attack: AutoAttackConfig | PGDConfig
    split: Split

    @property
    def kind(self) -> str:
        return "pgd" if isinstance(self.attack, PGDConfig) else "autoattack"

    @property
    def identity(self) -> dict:
        """What of the attack decides a chunk's verdict: not how many other chunks there are."""
        if isinstance(self.attack, PGDConfig):
            return asdict(self.attack)
        return {"version": self.attack.version, "batch": self.attack.batch, "seed": self.attack.seed}

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            self.kind,
            FORMAT,
            model=self.model,
            images=self.split.fingerprint,
            threat=self.threat,
            attack=self.identity,
        )

    def __repr__(self) -> str:
        return f"{self.kind} chunk {self.fingerprint} of {len(self.split)} images"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The merged receipts of a model: accuracy clean and under attack on the same images, and what was noticed."""

    clean: Accuracy
    robust: Accuracy
    broken_by: dict[str, int]
    flags: tuple[str, ...]
    unverified: int
    attacked_now: int


def evaluate(
    subjects: Mapping[str, Subject],
    test: Split,
    threat: ThreatModel,
    config: EvaluationConfig,
    *,
    root: Path,
    workers: Callable[[], Workers],
    progress: Callable[[str], None],
) -> dict[str, dict[str, Evaluation]]:
    """Every model under AutoAttack and under PGD: evaluations by name of the model, then "autoattack" and "pgd".

    AutoAttack gets the first ``config.images`` test images of a fixed random order, PGD (off the lattice) the first
    ``config.pgd_images``. ``progress`` gets a line a chunk.
    """
    chunks = {
        (name, kind): [
            Chunk(root=str(root), model=subject.fingerprint, threat=threat, attack=attack, split=part)
            for part in _parts(choose(test, images), size)
        ]
        for name, subject in subjects.items()
        for kind, attack, images, size in _attacks(config)
    }
    store = Store(root)
    receipts = {
        chunk.fingerprint: store.get(chunk.kind, chunk.fingerprint) for group in chunks.values() for chunk in group
    }
    missing = {name for name, receipt in receipts.items() if receipt is None}

    def found(group: tuple[str, str]) -> list[Artifact]:
        return [receipt for chunk in chunks[group] if (receipt := receipts[chunk.fingerprint]) is not None]

    if missing:
        place = workers()
        models = {name: put(subject.model) for name, subject in subjects.items()}
        work = [
            (group, chunk, place.device, [models[group[0]]])
            for group, members in chunks.items()
            for chunk in members
            if chunk.fingerprint in missing
        ]
        for (group, chunk, *_), receipt in run_tasks(attack_to_receipt, work, cpus=place.cpus, gpus=place.gpus):
            receipts[chunk.fingerprint] = receipt
            progress(f"{group[1]} on the {group[0]} classifier: {_accuracy(found(group), 'robust')}")
    return {
        name: {
            kind: _merge(found((name, kind)), attacked_now=sum(c.fingerprint in missing for c in chunks[name, kind]))
            for kind, *_ in _attacks(config)
        }
        for name in subjects
    }


def choose(test: Split, count: int) -> Split:
    """The first ``count`` test images of a fixed random order, so that more images contain the fewer."""
    return test.take(randomness.permutation(len(test), "evaluation")[:count])


def _attacks(config: EvaluationConfig) -> list[tuple[str, AutoAttackConfig | PGDConfig, int, int]]:
    """Kind, attack, images and images a chunk; the expensive attack first, so that workers end together."""
    auto = AutoAttackConfig(
        version=config.version, images=config.images, chunk=config.chunk, batch=config.batch, seed=config.seed
    )
    pgd = PGDConfig(steps=config.pgd_steps, seed=config.seed)
    return [("autoattack", auto, config.images, config.chunk), ("pgd", pgd, config.pgd_images, PGD_CHUNK)]


def _parts(images: Split, size: int) -> list[Split]:
    return [images.take(np.arange(first, min(first + size, len(images)))) for first in range(0, len(images), size)]


def attack_to_receipt(work: tuple[tuple[str, str], Chunk, str, list[Ref[nn.Module]]]) -> Artifact:
    """Attack one chunk, verify what was found, and commit both as an artifact. Runs in a process of its own."""
    _, chunk, device, (reference,) = work
    model = reference.get().to(device)
    measure = _measure_pgd if chunk.kind == "pgd" else _measure_autoattack
    with cpu_threads(1):
        return Store(Path(chunk.root)).make(
            chunk.kind,
            chunk.fingerprint,
            lambda directory: measure(chunk, model, directory),
            config={"attack": chunk.identity, "threat": chunk.threat},
            inputs={"model": chunk.model, "images": chunk.split.fingerprint},
            device=device,
        )


def _measure_autoattack(chunk: Chunk, model: nn.Module, directory: Path) -> dict:
    assert isinstance(chunk.attack, AutoAttackConfig)
    images, labels = torch.from_numpy(chunk.split.images), torch.from_numpy(chunk.split.labels)
    verdict = attack_chunk(model, images, labels, chunk.threat, config=chunk.attack)
    check = verify_chunk(model, images, labels, verdict, chunk.threat, batch=chunk.attack.batch)
    np.savez_compressed(
        directory / "verdict.npz",
        rows=chunk.split.rows,
        adversarial=verdict.adversarial,
        distance=verdict.distance,
        broken_by=np.array([by or "" for by in verdict.broken_by]),
    )
    return {
        "images": len(labels),
        "clean": int(verdict.clean.sum()),
        "robust": int(verdict.robust.sum()),
        "broken_by": list(verdict.broken_by),
        "flags": list(verdict.flags),
        "attack_seconds": verdict.seconds,
        "unverified": sorted({*check.outside_ball, *check.outside_range, *check.judged_otherwise}),
        "largest_distance": check.largest_distance,
    }


def _measure_pgd(chunk: Chunk, model: nn.Module, directory: Path) -> dict:
    assert isinstance(chunk.attack, PGDConfig)
    images, labels = torch.from_numpy(chunk.split.images), torch.from_numpy(chunk.split.labels)
    robust = pgd_mask(model, images, labels, chunk.threat, config=chunk.attack, rows=chunk.split.rows)
    clean = clean_mask(model, images, labels, batch=chunk.attack.batch)
    np.savez_compressed(directory / "verdict.npz", rows=chunk.split.rows, clean=clean, robust=robust)
    broken_by = [None if stood else "pgd" if right else "clean" for stood, right in zip(robust, clean, strict=True)]
    return {
        "images": len(labels),
        "clean": int(clean.sum()),
        "robust": int(robust.sum()),
        "broken_by": broken_by,
        "flags": [],
        "unverified": [],
    }


def _accuracy(receipts: list[Artifact], name: str) -> Accuracy:
    return Accuracy(
        correct=sum(receipt.metrics[name] for receipt in receipts),
        images=sum(receipt.metrics["images"] for receipt in receipts),
    )


def _merge(receipts: list[Artifact], *, attacked_now: int) -> Evaluation:
    broken_by = [by for receipt in receipts for by in receipt.metrics["broken_by"]]
    flags = {flag for receipt in receipts for flag in receipt.metrics["flags"]}
    overall = square_flag(broken_by)
    return Evaluation(
        clean=_accuracy(receipts, "clean"),
        robust=_accuracy(receipts, "robust"),
        broken_by={by: broken_by.count(by) for by in sorted({by for by in broken_by if by})},
        flags=tuple(sorted(flags | ({overall} if overall else set()))),
        unverified=sum(len(receipt.metrics["unverified"]) for receipt in receipts),
        attacked_now=attacked_now,
    )
