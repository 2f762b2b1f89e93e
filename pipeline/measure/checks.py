"""The checks on a model, fanned out: `run_checks` in one task, the trainings that explain a defence in the others.

Each task leaves a receipt, so that a killed examination repeats only what was running, and the same one again
attacks and trains nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from cluster.pool import Ref, put, run_tasks
from pipeline.artifacts import Artifact, Store
from pipeline.delivery import named
from pipeline.measure.evaluation import Subject, in_order
from pipeline.measure.outcome import Evaluation, worst_of
from pipeline.placement import Place
from pipeline.progress import Say, passing
from pipeline.recipe import ChecksConfig
from stages import numerics
from stages.data.splits import Split
from stages.evaluation.accuracy import Accuracy, on_device
from stages.evaluation.checks.all_checks import run_checks
from stages.evaluation.checks.examined import CheckSize, Examined
from stages.evaluation.checks.explanations import (
    Ablations,
    SelectionFacts,
    VanillaTraining,
    check_ablations,
    check_selection,
    check_vanilla_training,
)
from stages.evaluation.evidence import Check, Curve
from stages.evaluation.pgd import PGDConfig, pgd_mask
from stages.fingerprint import fingerprint
from stages.rap.threat import ThreatModel
from stages.storage import Storage
from stages.training.ablations import PARTS, train_part
from stages.training.setup import Setup

ABLATION_ATTACK = PGDConfig(steps=20)
UNTRAINED = "untrained adapter"
ALONE = "undefended classifier"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """What the checks found, and what their attacks did to each of ``rows`` of the data set."""

    checks: tuple[Check, ...]
    curves: tuple[Curve, ...]
    attacks: Mapping[str, Accuracy]
    """Robust accuracy under each attack that the checks ran in the model's own ball."""
    rows: np.ndarray
    robust: np.ndarray
    """True where the image remains robust to all of them, and to what AutoAttack did before."""
    receipts: tuple[str, ...]
    seconds: float
    """What all of it took, whichever call did it."""
    done_now: int

    def check(self, number: int) -> Check:
        """The check of a number from 1 to 20."""
        return self.checks[number - 1]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known of how a model came about, for the checks that ask; nothing of a model from elsewhere."""

    undefended: Subject | None = None
    others: tuple[Subject, ...] = ()
    """Classifiers of the same task that the defence has never met."""
    selection: SelectionFacts | None = None
    setup: Setup | None = None
    """The training, from which checks 17 and 18 leave something out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Examined:
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
class _Training:
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
class _Tasks:
    root: str
    works: list[_Examined | _Training]
    device: str


def examine(
    subject: Subject,
    test: Split,
    threat: ThreatModel,
    config: ChecksConfig,
    *,
    auto: Evaluation | None,
    origin: Origin,
    root: Storage | Path,
    workers: Callable[[], Place],
    say: Say,
) -> Checked:
    """All 20 checks on a model. ``auto`` is AutoAttack's evaluation of it, whose images are those of the checks."""
    positions = in_order(test)[: config.size.images] if auto is None else test.positions(auto.rows)
    images = test.take(positions)
    examined = _Examined(
        subject=subject,
        images=images,
        threat=threat,
        size=config.size,
        undefended=origin.undefended,
        others=origin.others,
        autoattack=auto.name if auto else "",
        broken_by=tuple(auto.verdicts[i] for i in np.argsort(auto.rows)) if auto else (),
        flags=auto.flags if auto else (),
    )
    works: list[_Examined | _Training] = [examined, *_trainings(origin.setup, test, config)]
    store = Store(root)
    receipts = {work.fingerprint: store.get(work.kind, work.fingerprint) for work in works}
    missing = [work for work in works if receipts[work.fingerprint] is None]
    if missing:
        place = workers()
        trainings = sum(isinstance(work, _Training) and work.part in PARTS for work in missing)
        say(f"20 checks on the model, {trainings} trainings that explain it")
        # In one object, so that the setup, which holds the data, is in it once.
        sent = _Tasks(str(root), [_portable(work) for work in missing], place.device)
        tasks = put(named(sent, "the model", code_of=_models))
        numbered = [(number, [tasks]) for number in range(len(missing))]
        for _, receipt in run_tasks(
            _to_receipt, numbered, cpus=place.cpus, gpus=place.gpus, fresh=False, say=passing(say)
        ):
            receipts[receipt.manifest["fingerprint"]] = receipt
            say(_line(receipt))
    found = [receipt for receipt in receipts.values() if receipt is not None]
    return _checked(examined, found, _told(found[1:], origin, config), done_now=len(missing))


def _portable(work: "_Examined | _Training") -> "_Examined | _Training":
    """The work with its models on the CPU, for workers of any kind."""
    if isinstance(work, _Training):
        return work

    def moved(subject: Subject) -> Subject:
        return replace(subject, model=on_device(subject.model, "cpu"))

    undefended = work.undefended and moved(work.undefended)
    return replace(
        work, subject=moved(work.subject), undefended=undefended, others=tuple(moved(other) for other in work.others)
    )


def _models(tasks: _Tasks) -> list[nn.Module]:
    """All that is a user's in the work."""
    examined = [work for work in tasks.works if isinstance(work, _Examined)]
    subjects = [each for work in examined for each in (work.subject, work.undefended, *work.others) if each]
    return [*(each.model for each in subjects), *(w.setup.classifier for w in tasks.works if isinstance(w, _Training))]


def _line(receipt: Artifact) -> str:
    metrics = receipt.metrics
    if receipt.manifest["kind"] == "ablation":
        rounds = f", {100 * metrics['share']:g} % of the rounds" if metrics["part"] in PARTS else ""
        return f"{metrics['part']}{rounds}: PGD-20 {Accuracy(**metrics['robust'])}"
    verdicts = [check["verdict"] for check in metrics["checks"]]
    return f"checks 1 to 16 and 20: {verdicts.count('fail')} fail, {verdicts.count('warn')} warn"


def headline(evaluations: Sequence[Evaluation], checked: Checked) -> Accuracy:
    """The images that remain robust to every attack of the evaluations, and to everything that the checks tried."""
    worst = worst_of(evaluations)
    robust = dict(zip(checked.rows.tolist(), checked.robust.tolist(), strict=True))
    return Accuracy.from_mask(worst.robust_mask & np.array([robust.get(row, True) for row in worst.rows.tolist()]))


def _trainings(setup: Setup | None, test: Split, config: ChecksConfig) -> Iterator[_Training]:
    if setup is None or not config.budget or setup.config.train.what != "adapter":
        return
    images = test.take(in_order(test)[: config.ablation_images])
    for part in (*PARTS, UNTRAINED, ALONE):
        yield _Training(setup=setup, part=part, share=config.budget, images=images)


def _told(receipts: list[Artifact], origin: Origin, config: ChecksConfig) -> dict[int, Check]:
    """Checks 17 to 19, which judge what was measured by trainings and what is known of the data."""
    accuracy = {receipt.metrics["part"]: Accuracy(**receipt.metrics["robust"]) for receipt in receipts}
    ablations = vanilla = None
    if accuracy:
        known: dict[str, Any] = {"attack": "PGD-20", "budget": config.budget, "defence": accuracy["defence"]}
        ablations = Ablations(
            **known,
            undefended=accuracy[ALONE],
            untrained_adapter=accuracy[UNTRAINED],
            denoising_only=accuracy["denoising only"],
            adversarial_training=accuracy["adversarial training"],
        )
        vanilla = VanillaTraining(**known, vanilla=accuracy["vanilla adversaries"])
    checks = (check_ablations(ablations), check_vanilla_training(vanilla), check_selection(origin.selection))
    return {check.number: check for check in checks}


def _checked(examined: _Examined, receipts: list[Artifact], told: dict[int, Check], *, done_now: int) -> Checked:
    metrics = receipts[0].metrics
    checks = [Check(**found) for found in metrics["checks"]]
    return Checked(
        checks=tuple(told.get(check.number, check) for check in checks),
        curves=tuple(Curve.from_json(found) for found in metrics["curves"]),
        attacks={name: Accuracy(**counts) for name, counts in metrics["attacks"].items()},
        rows=examined.images.rows,
        robust=np.array(metrics["robust"], dtype=bool),
        receipts=tuple(str(receipt.path) for receipt in receipts),
        seconds=sum(receipt.manifest["provenance"]["seconds"] for receipt in receipts),
        done_now=done_now,
    )


def _to_receipt(numbered: tuple[int, list[Ref[_Tasks]]], tell: Callable[[str], None]) -> Artifact:
    number, (reference,) = numbered
    tasks = reference.get()
    work, device = tasks.works[number], tasks.device
    measure = _measure_checks if isinstance(work, _Examined) else _measure_training
    with numerics.verdict(threads=1):
        return Store(tasks.root).make(
            work.kind,
            work.fingerprint,
            lambda directory: measure(work, directory, device, tell),  # pyright: ignore[reportArgumentType]
            config=work.size if isinstance(work, _Examined) else {"part": work.part},
            inputs={"images": work.images.fingerprint},
            device=device,
        )


def _measure_checks(work: _Examined, directory: Path, device: str, tell: Callable[[str], None]) -> dict:
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


def _measure_training(work: _Training, directory: Path, device: str, tell: Callable[[str], None]) -> dict:
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


def _trained(work: _Training, device: str, tell: Callable[[str], None]) -> nn.Module:
    setup = replace(work.setup, device=device)
    if work.part == ALONE:
        return setup.classifier.to(device)
    if work.part == UNTRAINED:
        return setup.build()
    name = f"ablations/{work.fingerprint}"
    return train_part(work.part, setup, share=work.share, name=name, progress=tell)  # pyright: ignore[reportArgumentType]


def _counts(accuracy: Accuracy) -> dict[str, int]:
    return {"correct": accuracy.correct, "images": accuracy.images}
