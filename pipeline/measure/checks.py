"""The checks on a model, fanned out: `run_checks` in one task, the trainings that explain a defence in the others.

Each task leaves a receipt, so that a killed examination repeats only what was running, and the same one again
attacks and trains nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.pool import run_tasks
from cluster.refs import put
from pipeline.artifacts import Artifact, Store
from pipeline.delivery import named
from pipeline.measure.check_tasks import (
    ALONE,
    UNTRAINED,
    ChecksTask,
    Tasks,
    TrainingTask,
    models_of,
    portable,
    to_receipt,
)
from pipeline.measure.evaluation import Subject, in_order
from pipeline.measure.outcome import Evaluation, worst_of
from pipeline.placement import Place
from pipeline.progress import Say, passing
from pipeline.recipe import ChecksConfig
from stages.data.splits import Split
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.checks.explanations import (
    Ablations,
    SelectionFacts,
    VanillaTraining,
    check_ablations,
    check_selection,
    check_vanilla_training,
)
from stages.evaluation.evidence import Check, Curve
from stages.storage import Storage
from stages.training.ablations import PARTS
from stages.training.setup import Setup


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
class Known:
    """What is known of a model before its checks; of one from elsewhere, little of how it came about."""

    auto: Evaluation
    """AutoAttack's evaluation of it, whose images and threat model are those of the checks."""
    undefended: Subject | None = None
    others: tuple[Subject, ...] = ()
    """Classifiers of the same task that the defence has never met."""
    selection: SelectionFacts | None = None
    setup: Setup | None = None
    """The training, from which checks 17 and 18 leave something out."""


def examine(
    subject: Subject,
    test: Split,
    config: ChecksConfig,
    known: Known,
    *,
    root: Storage | Path,
    workers: Callable[[], Place],
    say: Say,
) -> Checked:
    """All 20 checks on a model."""
    auto = known.auto
    examined = ChecksTask(
        subject=subject,
        images=test.take(test.positions(auto.rows)),
        threat=auto.threat,
        size=config.size,
        undefended=known.undefended,
        others=known.others,
        autoattack=auto.name,
        broken_by=tuple(auto.verdicts[i] for i in np.argsort(auto.rows)),
        flags=auto.flags,
    )
    works: list[ChecksTask | TrainingTask] = [examined, *_trainings(known.setup, test, config)]
    store = Store(root)
    receipts = {work.fingerprint: store.get(work.kind, work.fingerprint) for work in works}
    missing = [work for work in works if receipts[work.fingerprint] is None]
    if missing:
        place = workers()
        trainings = sum(isinstance(work, TrainingTask) and work.part in PARTS for work in missing)
        say("20 checks on the model" + (f", {trainings} trainings that explain it" if trainings else ""))
        # In one object, so that the setup, which holds the data, is in it once.
        sent = Tasks(str(root), [portable(work) for work in missing], place.device)
        tasks = put(named(sent, "the model", code_of=models_of))
        numbered = [(number, [tasks]) for number in range(len(missing))]
        for _, receipt in run_tasks(
            to_receipt, numbered, cpus=place.cpus, gpus=place.gpus, fresh=False, say=passing(say)
        ):
            receipts[receipt.manifest["fingerprint"]] = receipt
            say(_line(receipt))
    found = [receipt for receipt in receipts.values() if receipt is not None]
    return _checked(examined, found, _told(found[1:], known.selection, config), done_now=len(missing))


def _line(receipt: Artifact) -> str:
    metrics = receipt.metrics
    if receipt.manifest["kind"] == "ablation":
        rounds = f", {100 * metrics['share']:g} % of the rounds" if metrics["part"] in PARTS else ""
        return f"{metrics['part']}{rounds}: PGD-20 {Accuracy(**metrics['robust'])}"
    verdicts = [check["verdict"] for check in metrics["checks"]]
    return f"checks 1 to 16 and 20: {verdicts.count('fail')} fail, {verdicts.count('warn')} warn"


def robust_accuracy(evaluations: Sequence[Evaluation], checked: Checked) -> Accuracy:
    """The images that remain robust to every attack of the evaluations, and to everything that the checks tried."""
    worst = worst_of(evaluations)
    robust = dict(zip(checked.rows.tolist(), checked.robust.tolist(), strict=True))
    return Accuracy.from_mask(worst.robust_mask & np.array([robust.get(row, True) for row in worst.rows.tolist()]))


def _trainings(setup: Setup | None, test: Split, config: ChecksConfig) -> Iterator[TrainingTask]:
    if setup is None or not config.budget or setup.config.train.what != "adapter":
        return
    images = test.take(in_order(test)[: config.ablation_images])
    for part in (*PARTS, UNTRAINED, ALONE):
        yield TrainingTask(setup=setup, part=part, share=config.budget, images=images)


def _told(receipts: list[Artifact], selection: SelectionFacts | None, config: ChecksConfig) -> dict[int, Check]:
    """Checks 17 to 19, which judge what was measured by trainings and what is known of the data."""
    accuracy = {receipt.metrics["part"]: Accuracy(**receipt.metrics["robust"]) for receipt in receipts}
    ablations = vanilla = None
    if accuracy:
        common: dict[str, Any] = {"attack": "PGD-20", "budget": config.budget, "defence": accuracy["defence"]}
        ablations = Ablations(
            **common,
            undefended=accuracy[ALONE],
            untrained_adapter=accuracy[UNTRAINED],
            denoising_only=accuracy["denoising only"],
            adversarial_training=accuracy["adversarial training"],
        )
        vanilla = VanillaTraining(**common, vanilla=accuracy["vanilla adversaries"])
    checks = (check_ablations(ablations), check_vanilla_training(vanilla), check_selection(selection))
    return {check.number: check for check in checks}


def _checked(examined: ChecksTask, receipts: list[Artifact], told: dict[int, Check], *, done_now: int) -> Checked:
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
