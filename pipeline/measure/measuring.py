"""Measures models, whoever trained them: under every attack on Ray, or by a quick screening without it."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from cluster.session import session
from pipeline.artifacts import Store
from pipeline.flags import WorkersConfig
from pipeline.measure.checks import Known, examine
from pipeline.measure.chunks import Chunk, commit_chunk, load_verdict
from pipeline.measure.evaluation import evaluate, final_measurements, parts, subject_of
from pipeline.measure.findings import Findings
from pipeline.measure.outcome import merge, of_kind
from pipeline.measure.subjects import undefended_of
from pipeline.placement import Place, place_for_tasks
from pipeline.progress import Say, passing
from pipeline.recipe import ChecksConfig, EvaluationConfig
from stages.data.splits import Split
from stages.evaluation.accuracy import device_of, on_device, to_float
from stages.evaluation.attacks import Attack
from stages.evaluation.autoattack import AutoAttackConfig, lineup_on
from stages.evaluation.checks.examined import CheckSize
from stages.evaluation.isolation import try_attack
from stages.evaluation.measurement import FunctionConfig, Measurement
from stages.evaluation.screening import Screening, ScreeningConfig, screen
from stages.rap.threat import ThreatModel
from stages.storage import Storage


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What is to be measured on which models."""

    models: Mapping[str, nn.Module]
    """In eval mode, by name; the first is the one that is checked."""
    data: str
    """Name of the data set of the images."""
    test: Split
    measurements: Sequence[Measurement]
    functions: Sequence[tuple[FunctionConfig, Attack]] = ()
    """The functions that some of the measurements name."""
    checks: CheckSize | None = None
    """The size of the checks, which follow AutoAttack; None for none."""


def find(
    asked: Asked,
    *,
    root: Storage | Path,
    workers: WorkersConfig,
    say: Say,
    begin: Callable[[Mapping[str, str]], None] = lambda fingerprints: None,
) -> Findings:
    """Every model under every measurement, on a Ray session that starts only if something is left to attack.

    ``begin`` is told the models' fingerprints before the first attack.
    """
    test = asked.test
    subjects = {name: subject_of(model, test.images) for name, model in asked.models.items()}
    begin({name: subject.fingerprint for name, subject in subjects.items()})
    began = time.perf_counter()
    with ExitStack() as stack:

        @cache
        def start() -> Place:
            return place_for_tasks(stack.enter_context(session(cpus=workers.cpus)), workers)

        found = evaluate(
            subjects,
            test,
            asked.measurements,
            root=root,
            workers=start,
            say=say,
            functions={config.path: function for config, function in asked.functions},
        )
        name, first = next(iter(subjects.items()))
        auto, checked = of_kind(found[name], "autoattack"), None
        if asked.checks is not None and auto is not None and auto.threat.norm != "L1":
            known = Known(auto=auto, undefended=undefended_of(first.model, test))
            checked = examine(first, test, ChecksConfig(size=asked.checks), known, root=root, workers=start, say=say)
    return Findings(
        checked=checked,
        data=asked.data,
        test=test.fingerprint,
        evaluations=found,
        fingerprints={name: subject.fingerprint for name, subject in subjects.items()},
        seconds=time.perf_counter() - began,
    )


def screening_on(model: nn.Module, test: Split, threat: ThreatModel, images: int) -> Measurement:
    """What a screening attacks a model with: of AutoAttack the two that find most, and exist for its classes."""
    with torch.no_grad():
        classes = model(to_float(torch.from_numpy(test.images[:1])).to(device_of(model))).shape[1]
    strongest = "apgd-t" if classes > 3 else "apgd-dlr" if classes == 3 else "fab"
    attack = AutoAttackConfig(version="custom", attacks=("apgd-ce", strongest))
    return Measurement(name="screening", attack=attack, threat=threat, images=images, chunk=64)


def quick_findings(asked: Asked, config: ScreeningConfig, *, root: Storage | Path, device: str, say: Say) -> Findings:
    """A screening of the one model, batch after batch in this process.

    The order of the batches must not depend on their verdicts.
    """
    began, (model,), (plan,) = time.perf_counter(), asked.models.values(), asked.measurements
    model = on_device(model, device)
    subject = subject_of(model, asked.test.images)
    chunks = (
        Chunk(root=str(root), model=subject.fingerprint, threat=plan.threat, attack=plan.attack, split=part)
        for part in parts(asked.test, plan)
    )
    receipts, attacked, going = [], 0, passing(say)

    def verdicts():  # noqa: ANN202 - a generator of ChunkVerdicts, each attacked when it is asked for
        nonlocal attacked
        for chunk in chunks:
            attacked += Store(root).get(chunk.kind, chunk.fingerprint) is None
            receipts.append(commit_chunk(chunk, model, device=device, functions={}, tell=going))
            yield load_verdict(io.BytesIO(receipts[-1].read("verdict.npz")))

    screening: Screening = screen(verdicts(), config, progress=say)
    evaluation = merge(receipts, plan.threat, attacked_now=attacked)
    return Findings(
        data=asked.data,
        test=asked.test.fingerprint,
        evaluations={"model": {"screening": evaluation}},
        fingerprints={"model": subject.fingerprint},
        seconds=time.perf_counter() - began,
        screening=screening,
    )


def measurements_on(
    model: nn.Module,
    test: Split,
    threat: ThreatModel,
    config: EvaluationConfig,
    given: Sequence[tuple[FunctionConfig, Attack]],
) -> list[Measurement]:
    """What an evaluation runs on a model: AutoAttack's attacks, PGD, and one's own.

    Raises ValueError for attacks of AutoAttack that do not exist for the model, and for own ones that fail on an image.
    """
    images, labels = torch.from_numpy(test.images[:2]), torch.from_numpy(test.labels[:2])
    auto = lineup_on(model, to_float(images), threat, config)
    for own, attack in given:
        try_attack(own.path, attack, model, images, labels, threat)
    return [*final_measurements(config, threat, auto), *own_measurements(given, threat, config)]


def own_measurements(
    given: Sequence[tuple[FunctionConfig, Attack]], threat: ThreatModel, config: EvaluationConfig
) -> list[Measurement]:
    """One's own attacks on the images of AutoAttack, so that they count in the robust accuracy."""
    return [
        Measurement(name=each.path, attack=each, threat=threat, images=config.images, chunk=config.chunk)
        for each, _ in given
    ]
