"""What a report says of a run, or of any model: the figures, pictures and origins of `stages.report.Contents`."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from pipeline.artifacts import manifest_at
from pipeline.defend.plan import Plan
from pipeline.measure.checks import Checked, headline
from pipeline.measure.evaluation import in_order
from pipeline.measure.outcome import Evaluation, of_kind, worst_of
from pipeline.tell.findings import Findings, ball_text
from pipeline.tell.results import describe_model, origins
from stages import numerics
from stages.data.splits import Split
from stages.evaluation.accuracy import device_of, evaluating, predict, to_float
from stages.evaluation.evidence import Row, Table
from stages.evaluation.pgd import PGDConfig, pgd
from stages.evaluation.published import FIELD, PAPER, Setting, beside
from stages.fingerprint import canonical
from stages.rap.attack import AttackProcess, attack, draw_start
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.report import Attacked, Broken, Contents, LineageEntry, Pictures, TrajectoryPictures
from stages.training.setup import Setup

GALLERY = 8  # images in the pictures
STEPWISE = 2  # of them, step by step


def run_contents(
    plan: Plan,
    setup: Setup,
    models: tuple[RobustClassifier, nn.Module],
    found: dict[str, dict[str, Evaluation]],
    checked: Checked,
    results: dict,
) -> Contents:
    """The contents of a run's report; ``models`` are the robust classifier and the undefended one."""
    robust, classifier = models
    test, threat = plan.data.test, plan.recipe.threat
    evaluations, alone = found["robust"], found["undefended"]
    auto = evaluations[plan.autoattack.name]
    made = [artifact.path for artifacts in origins(plan, setup).values() for artifact in artifacts]
    attacked = [path for each in found.values() for evaluation in each.values() for path in evaluation.receipts]
    pictures, trajectories = gallery(robust, classifier, test, setup.config.attack)
    return Contents(
        title=plan.name,
        data=plan.data.name,
        threat=threat,
        description=describe_model(results),
        clean=worst_of(list(evaluations.values())).clean,
        headline=headline(list(evaluations.values()), checked),
        worst_of=(*evaluations, *checked.attacks),
        undefended_clean=worst_of(list(alone.values())).clean,
        undefended_headline=worst_of(list(alone.values())).robust,
        attacks=(
            *(
                Attacked(name=name, robust=each.robust, undefended=alone[name].robust)
                for name, each in evaluations.items()
            ),
            *(Attacked(name=name, robust=accuracy) for name, accuracy in checked.attacks.items()),
        ),
        checks=checked.checks,
        flags=worst_of(list(evaluations.values())).flags,
        notes=(*notes_on(plan.data.name, auto), *_repeated(results["set_aside"])),
        broken=(
            Broken(model="robust classifier", images=len(auto.rows), by=auto.broken_by),
            Broken(model="undefended classifier", images=len(alone[auto.name].rows), by=alone[auto.name].broken_by),
        ),
        curves=checked.curves,
        tables=field_tables(plan.data.name, threat, auto, results["classifier"]["architecture"]),
        classes=tuple(plan.data.classes),
        pictures=pictures,
        trajectories=trajectories,
        training=tuple(setup.journal.lines()),
        shipped_version=results["shipped"]["version"],
        alarms=tuple(results["alarms"]),
        search=results["search"] if results["search"]["trials"] else {},
        recipe=canonical(plan.recipe),  # pyright: ignore[reportArgumentType]
        lineage=tuple(lineage([*made, *attacked, *checked.receipts])),
        seconds=results["seconds"],
    )


def _repeated(rounds: int) -> tuple[str, ...]:
    """What is said of a training that was interrupted on a device that repeats nothing to the bit."""
    if not rounds:
        return ()
    return (f"The training was interrupted: {rounds} rounds after its checkpoints were set aside and made anew.",)


def model_contents(
    model: nn.Module,
    found: Findings,
    test: Split,
    *,
    title: str,
    classes: Sequence[str],
    classifier: str | None,
) -> Contents:
    """The contents of the report on any model that was checked, in the ball of its first evaluation."""
    assert found.checked is not None
    evaluations, checked = next(iter(found.evaluations.values())), found.checked
    auto = of_kind(evaluations, "autoattack")
    assert auto is not None
    inside = {name: each for name, each in evaluations.items() if each.threat == auto.threat}
    worst = worst_of(list(inside.values()))
    return Contents(
        title=title,
        data=found.data,
        threat=auto.threat,
        description=classifier or type(model).__name__,
        clean=worst.clean,
        headline=found.headline,
        worst_of=(*inside, *checked.attacks),
        attacks=(
            *(Attacked(name=name, robust=each.robust) for name, each in inside.items()),
            *(Attacked(name=name, robust=accuracy) for name, accuracy in checked.attacks.items()),
        ),
        checks=checked.checks,
        flags=worst.flags,
        notes=notes_on(found.data, auto),
        broken=(Broken(model="model", images=len(auto.rows), by=auto.broken_by),),
        curves=checked.curves,
        tables=field_tables(found.data, auto.threat, auto, classifier),
        classes=tuple(classes),
        pictures=pictures_of(model, test, auto.threat),
        lineage=tuple(lineage([*(path for each in inside.values() for path in each.receipts), *checked.receipts])),
        seconds={"evaluation": sum(each.seconds for each in evaluations.values()), "checks": checked.seconds},
    )


def pictures_of(model: nn.Module, test: Split, threat: ThreatModel) -> Pictures:
    """Test images and what PGD-40 makes of them, for a model of which nothing else is known."""
    chosen = test.take(in_order(test)[:GALLERY])
    device = device_of(model)
    clean = to_float(torch.from_numpy(chosen.images)).to(device)
    adversarial, _ = pgd(
        model,
        clean,
        torch.from_numpy(chosen.labels).to(device),
        threat,
        config=PGDConfig(steps=40),
        rows=chosen.rows,
    )
    return Pictures(
        attack="PGD-40",
        clean=clean.numpy(force=True),
        adversarial=adversarial.numpy(force=True),
        labels=chosen.labels,
        clean_predictions=_answers(model, clean),
        adversarial_predictions=_answers(model, adversarial),
    )


def _answers(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    """The class that a model is made to answer, whatever its logits are."""
    with torch.no_grad(), evaluating(model):
        return model(images).argmax(1).numpy(force=True)


def notes_on(data: str, auto: Evaluation) -> tuple[str, ...]:
    """What a reader should know about the figures."""
    half = 100 * (auto.robust.interval[1] - auto.robust.interval[0]) / 2
    notes = [f"{len(auto.rows)} images know the robust accuracy to about ±{half:.0f} points."]
    if not auto.is_standard:
        notes.append(f"{auto.name} is not AutoAttack standard: its figure belongs beside no published one.")
    if "JPEG" in data:
        notes.append(f"The images are {data}: a copy that went through JPEG, not the benchmark's own.")
    return tuple(notes)


def field_tables(data: str, threat: ThreatModel, auto: Evaluation, classifier: str | None) -> tuple[Table, ...]:
    """The paper's and the field's tables for this data set and ball, with our row; none where nobody published any, or
    where ours is not by AutoAttack standard, as theirs are."""
    if not auto.is_standard:
        return ()
    ball = ball_text(threat)
    ours = Setting(data=data, threat=ball, attack=auto.name, images=len(auto.rows), classifier=classifier)
    row = Row(name="ours", values=("none", auto.clean, auto.robust))
    published = [PAPER["1"], PAPER["2"], *FIELD.values()]
    name = data.split(" (")[0]
    found = [
        beside(table, [row], ours) for table in published if (table.setting.data, table.setting.threat) == (name, ball)
    ]
    return tuple(table for table in found if len(table.rows) > 1)  # on a copy of the data nobody of the field is left


def gallery(
    robust: RobustClassifier, classifier: nn.Module, test: Split, process: AttackProcess
) -> tuple[Pictures, tuple[TrajectoryPictures, ...]]:
    """Test images under the attack process (Alg. 1) against the whole robust classifier, and two of them stepwise."""
    chosen, device = test.take(in_order(test)[:GALLERY]), device_of(robust)
    images, labels = torch.from_numpy(chosen.images).to(device), torch.from_numpy(chosen.labels).to(device)
    name = f"{process.steps} steps of the attack process"
    with numerics.verdict(threads=1), torch.no_grad():
        start = draw_start(process, 0, chosen.rows, chosen.images.shape[1:]).to(device)
        process = replace(process, precision="float32")  # for a few images, on whatever there is
        states = process.lattice.to_float(attack(robust, images, labels, process, start).levels)
        clean, adversarial = process.lattice.to_float(process.lattice.from_bytes(images)), states[-1]
        pictures = Pictures(
            attack=name,
            clean=clean.numpy(force=True),
            adversarial=adversarial.numpy(force=True),
            labels=chosen.labels,
            clean_predictions=predict(classifier, clean),
            adversarial_predictions=predict(classifier, adversarial),
            restored=robust.purify(adversarial).numpy(force=True),
            restored_predictions=predict(robust, adversarial),
            restored_clean=robust.purify(clean).numpy(force=True),
            restored_clean_predictions=predict(robust, clean),
        )
        stepwise = tuple(
            TrajectoryPictures(
                name=f"{name} against the robust classifier",
                clean=pictures.clean[i],
                label=int(chosen.labels[i]),
                states=states[:, i].numpy(force=True),
                predictions=predict(robust, states[:, i]),
                restored=robust.purify(states[:, i]).numpy(force=True),
            )
            for i in range(min(STEPWISE, len(chosen)))
        )
    return pictures, stepwise


def lineage(paths: Iterable[str]) -> Iterable[LineageEntry]:
    """The artifacts behind the figures, as their manifests name them."""
    for path in dict.fromkeys(paths):
        manifest = manifest_at(path)
        origin = manifest["provenance"]
        yield LineageEntry(
            kind=manifest["kind"],
            fingerprint=manifest["fingerprint"],
            commit=origin["commit"] or "",
            created=origin["created"],
            device=origin["device"],
            seconds=float(origin["seconds"]),
            packages={"python": origin["python"], **origin["packages"]},
        )
