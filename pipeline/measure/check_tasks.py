"""What checks a model in a task: the checks that attack it, and each training that explains its defence.

Each leaves a receipt, named by all that decides what is in it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from cluster.refs import Ref
from pipeline.artifacts import Artifact, Store
from pipeline.measure.evaluation import Subject
from stages import numerics
from stages.data.splits import Split
from stages.evaluation.accuracy import Accuracy, on_device
from stages.evaluation.checks.all_checks import run_checks
from stages.evaluation.checks.examined import CheckSize, Examined
from stages.evaluation.pgd import PGDConfig, pgd_mask
from stages.fingerprint import fingerprint
from stages.rap.threat import ThreatModel
from stages.training.ablations import train_part
from stages.training.setup import Setup

ABLATION_ATTACK = PGDConfig(steps=20)
UNTRAINED = "untrained adapter"
ALONE = "undefended classifier"


@dataclass(frozen=True, kw_only=True, eq=False)
class ChecksTask:
    """What a task needs of the model, as it is put in the object store."""

    kind: ClassVar[str] = "checks"
    subject: Subject
    images: Split
    threat: ThreatModel
    size: CheckSize
    undefended: Subject | None
    others: tuple[Subject, ...]
    autoattack: str
    broken_by: tuple[str | None, ...]
    flags: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            "checks",
            3,
            model=self.subject.fingerprint,
            images=self.images.fingerprint,
            threat=self.threat,
            size=self.size,
            undefended=self.undefended and self.undefended.fingerprint,
            others=[other.fingerprint for other in self.others],
            autoattack=self.autoattack,
            broken_by=list(self.broken_by),
            flags=list(self.flags),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingTask:
    """A training of checks 17 and 18, and the images on which it is measured."""

    kind: ClassVar[str] = "ablation"
    setup: Setup
    part: str
    share: float
    images: Split

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            "ablation",
            1,
            model=self.setup.model,
            loop=self.setup.config,
            train=self.setup.train.fingerprint,
            part=self.part,
            share=self.share,
            images=self.images.fingerprint,
            attack=ABLATION_ATTACK,
        )


@dataclass(frozen=True)
class Tasks:
    root: str
    works: list[ChecksTask | TrainingTask]
    device: str


def portable(work: ChecksTask | TrainingTask) -> ChecksTask | TrainingTask:
    """The work with its models on the CPU, for workers of any kind."""
    if isinstance(work, TrainingTask):
        return work

    def moved(subject: Subject) -> Subject:
        return replace(subject, model=on_device(subject.model, "cpu"))

    undefended = work.undefended and moved(work.undefended)
    return replace(
        work, subject=moved(work.subject), undefended=undefended, others=tuple(moved(other) for other in work.others)
    )


def models_of(tasks: Tasks) -> list[nn.Module]:
    """All that is a user's in the work."""
    examined = [work for work in tasks.works if isinstance(work, ChecksTask)]
    subjects = [each for work in examined for each in (work.subject, work.undefended, *work.others) if each]
    return [
        *(each.model for each in subjects),
        *(w.setup.classifier for w in tasks.works if isinstance(w, TrainingTask)),
    ]


def to_receipt(numbered: tuple[int, list[Ref[Tasks]]], tell: Callable[[str], None]) -> Artifact:
    number, (reference,) = numbered
    tasks = reference.get()
    work, device = tasks.works[number], tasks.device
    measure = _measure_checks if isinstance(work, ChecksTask) else _measure_training
    with numerics.verdict(threads=1):
        return Store(tasks.root).make(
            work.kind,
            work.fingerprint,
            lambda directory: measure(work, directory, device, tell),  # pyright: ignore[reportArgumentType]
            config=work.size if isinstance(work, ChecksTask) else {"part": work.part},
            inputs={"images": work.images.fingerprint},
            device=device,
        )


def _measure_checks(work: ChecksTask, directory: Path, device: str, tell: Callable[[str], None]) -> dict:
    images = work.images
    examination = run_checks(
        Examined(
            model=work.subject.model.to(device),
            images=torch.from_numpy(images.images),
            labels=torch.from_numpy(images.labels),
            rows=images.rows,
            threat=work.threat,
            undefended=work.undefended and work.undefended.model.to(device),
            others=tuple(other.model.to(device) for other in work.others),
            autoattack=work.autoattack,
            broken_by=work.broken_by,
            flags=work.flags,
        ),
        work.size,
        progress=lambda name: tell(f"checks on the model: {name}"),
    )
    adversarial = {f"{number} {result.name}": result.adversarial for number, result in enumerate(examination.results)}
    np.savez_compressed(directory / "attacks.npz", **adversarial)  # pyright: ignore[reportArgumentType]
    return {
        "checks": [asdict(check) for check in examination.checks],
        "curves": [curve.as_json() for curve in examination.curves],
        "attacks": {result.name: _counts(result.accuracy) for result in examination.results},
        "robust": examination.robust.tolist(),
    }


def _measure_training(work: TrainingTask, directory: Path, device: str, tell: Callable[[str], None]) -> dict:
    images, setup = work.images, work.setup
    mask = pgd_mask(
        _trained(work, device, tell),
        torch.from_numpy(images.images),
        torch.from_numpy(images.labels),
        setup.config.threat,
        config=ABLATION_ATTACK,
        rows=images.rows,
    )
    return {"part": work.part, "share": work.share, "robust": _counts(Accuracy.from_mask(mask))}


def _trained(work: TrainingTask, device: str, tell: Callable[[str], None]) -> nn.Module:
    setup = replace(work.setup, device=device)
    if work.part == ALONE:
        return setup.classifier.to(device)
    if work.part == UNTRAINED:
        return setup.build()
    name = f"ablations/{work.fingerprint}"
    return train_part(work.part, setup, share=work.share, name=name, progress=tell)  # pyright: ignore[reportArgumentType]


def _counts(accuracy: Accuracy) -> dict[str, int]:
    return {"correct": accuracy.correct, "images": accuracy.images}
