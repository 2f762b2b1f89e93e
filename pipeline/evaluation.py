"""The final evaluation, fanned out in evaluation chunks, each with its receipt, each verified again.

A chunk is attacked in a fresh process and leaves an artifact, so a killed evaluation repeats only what was
running, and the same evaluation again attacks nothing.
"""

from collections.abc import Callable
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
from stages.evaluation.autoattack import AutoAttackConfig, attack_chunk, square_flag, verify_chunk
from stages.evaluation.pgd import PGDConfig, pgd_mask
from stages.fingerprint import fingerprint
from stages.rap.threat import ThreatModel

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


def autoattack(
    subject: Subject,
    test: Split,
    threat: ThreatModel,
    config: EvaluationConfig,
    *,
    root: Path,
    workers: Callable[[], Workers],
    progress: Callable[[str], None],
) -> Evaluation:
    """AutoAttack on the first ``config.images`` test images of a fixed random order; a line of progress a chunk."""
    attack = AutoAttackConfig(
        version=config.version, images=config.images, chunk=config.chunk, batch=config.batch, seed=config.seed
    )
    chosen = choose(test, config.images)
    return _fan_out(subject, chosen, config.chunk, threat, attack, root=root, workers=workers, progress=progress)


def pgd(
    subject: Subject,
    test: Split,
    threat: ThreatModel,
    config: EvaluationConfig,
    *,
    root: Path,
    workers: Callable[[], Workers],
    progress: Callable[[str], None],
) -> Evaluation:
    """PGD with ``config.pgd_steps`` steps on the margin, off the lattice, on more images than AutoAttack gets."""
    attack = PGDConfig(steps=config.pgd_steps, loss="margin", seed=config.seed)
    chosen = choose(test, config.pgd_images)
    return _fan_out(subject, chosen, PGD_CHUNK, threat, attack, root=root, workers=workers, progress=progress)


def choose(test: Split, count: int) -> Split:
    """The first ``count`` test images of a fixed random order, so that more images contain the fewer."""
    return test.take(randomness.permutation(len(test), "evaluation")[:count])


def _fan_out(
    subject: Subject,
    images: Split,
    size: int,
    threat: ThreatModel,
    attack: AutoAttackConfig | PGDConfig,
    *,
    root: Path,
    workers: Callable[[], Workers],
    progress: Callable[[str], None],
) -> Evaluation:
    store = Store(root)
    parts = [images.take(np.arange(first, min(first + size, len(images)))) for first in range(0, len(images), size)]
    chunks = [
        Chunk(root=str(root), model=subject.fingerprint, threat=threat, attack=attack, split=part) for part in parts
    ]
    receipts = {chunk.fingerprint: store.get(chunk.kind, chunk.fingerprint) for chunk in chunks}
    missing = [chunk for chunk in chunks if receipts[chunk.fingerprint] is None]
    if missing:
        place, shared = workers(), put(subject.model)
        work = [(chunk, place.device, [shared]) for chunk in missing]
        for (chunk, *_), receipt in run_tasks(attack_to_receipt, work, cpus=place.cpus, gpus=place.gpus):
            receipts[chunk.fingerprint] = receipt
            done = [found for found in receipts.values() if found is not None]
            progress(f"{_accuracy(done, 'robust')} after {sum(r.metrics['images'] for r in done)}/{len(images)}")
    complete = [receipt for receipt in receipts.values() if receipt is not None]
    return _merge(complete, attacked_now=len(missing))


def attack_to_receipt(work: tuple[Chunk, str, list[Ref[nn.Module]]]) -> Artifact:
    """Attack one chunk, verify what was found, and commit both as an artifact. Runs in a process of its own."""
    chunk, device, (reference,) = work
    torch.set_num_threads(1)
    model = reference.get().to(device)
    measure = _measure_pgd if chunk.kind == "pgd" else _measure_autoattack
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
