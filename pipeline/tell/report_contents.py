"""What a report says of a run, or of any model: the figures, pictures and origins of `stages.report.Contents`."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.artifacts import manifest_at
from pipeline.measure.chunks import SPOKEN
from pipeline.measure.evaluation import in_order
from pipeline.measure.outcome import Evaluation
from pipeline.tell.results import Results
from pipeline.tell.run_facts import RunFacts
from pipeline.tell.text import ball_text
from stages import numerics
from stages.data.splits import Split
from stages.evaluation.accuracy import device_of, evaluating, predict, to_float
from stages.evaluation.evidence import Row, Table
from stages.evaluation.pgd import PGDConfig, pgd
from stages.evaluation.published import FIELD, PAPER, Setting, beside
from stages.rap.attack import attack
from stages.rap.norms import draw_start
from stages.rap.process import AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.report import Attacked, Broken, Contents, LineageEntry, Pictures, TrajectoryPictures

GALLERY = 8  # images in the pictures
STEPWISE = 2  # of them, step by step


def contents_of(
    found: Results,
    pictures: tuple[Pictures, tuple[TrajectoryPictures, ...]],
    *,
    title: str,
    classes: Sequence[str],
    description: str,
    classifier: str | None,
) -> Contents:
    """The contents of the report on the first model that was checked, in the ball of its first evaluation.

    ``classifier`` is its architecture, as the field's tables name it.
    """
    auto, checked, run = found.autoattack, found.checked, found.run
    assert auto is not None
    assert checked is not None
    inside = {name: each for name, each in found.first.items() if each.threat == auto.threat}
    alone, worst = found.evaluations.get("undefended"), found.worst_cases()[auto.threat]
    return Contents(
        title=title,
        data=found.data,
        threat=auto.threat,
        description=description,
        clean=found.clean(),
        robust_accuracy=found.robust_accuracy,
        worst_of=(*inside, *checked.attacks),
        undefended_clean=found.clean("undefended") if alone else None,
        undefended_robust_accuracy=found.worst_cases("undefended")[auto.threat].robust if alone else None,
        attacks=tuple(
            Attacked(name=name, robust=each.robust, undefended=alone[name].robust if alone else None)
            for name, each in inside.items()
        ),
        probes=tuple(Attacked(name=name, robust=accuracy) for name, accuracy in checked.attacks.items()),
        checks=checked.checks,
        flags=worst.flags,
        notes=(*notes_on(found.data, auto), *(_repeated(run.set_aside) if run else ())),
        broken=tuple(
            Broken(model=_spoken(model), images=len(each[auto.name].rows), by=each[auto.name].broken_by)
            for model, each in found.evaluations.items()
        ),
        curves=checked.curves,
        tables=field_tables(found.data, auto.threat, auto, classifier),
        classes=tuple(classes),
        pictures=pictures[0],
        trajectories=pictures[1],
        lineage=tuple(lineage(found.receipts)),
        seconds=run.seconds if run else found.seconds_of_work,
        **(_made(run) if run else {}),
    )


def _made(run: RunFacts) -> dict[str, Any]:
    """What the contents say of how a run's model was made."""
    return {
        "training": run.training,
        "shipped_version": run.selected["version"],
        "alarms": tuple(run.alarms),
        "search": run.search if run.search["trials"] else {},
        "recipe": run.recipe,
    }


def _spoken(model: str) -> str:
    return SPOKEN.get(model, model).removeprefix("the ")


def _repeated(rounds: int) -> tuple[str, ...]:
    """What is said of a training that was interrupted on a device that repeats nothing to the bit."""
    if not rounds:
        return ()
    return (f"The training was interrupted: {rounds} rounds after its checkpoints were set aside and made anew.",)


def pictures_of(model: nn.Module, test: Split, threat: ThreatModel) -> tuple[Pictures, tuple[TrajectoryPictures, ...]]:
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
    pictures = Pictures(
        attack="PGD-40",
        clean=clean.numpy(force=True),
        adversarial=adversarial.numpy(force=True),
        labels=chosen.labels,
        clean_predictions=_answers(model, clean),
        adversarial_predictions=_answers(model, adversarial),
    )
    return pictures, ()


def _answers(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    """The class that a model is made to answer, whatever its logits are."""
    with torch.no_grad(), evaluating(model):
        return model(images).argmax(1).numpy(force=True)


def notes_on(data: str, auto: Evaluation) -> tuple[str, ...]:
    """What a reader should know about the figures."""
    half = 100 * (auto.robust.interval[1] - auto.robust.interval[0]) / 2
    notes = [f"{len(auto.rows)} images give the robust accuracy to about ±{half:.0f} points."]
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
