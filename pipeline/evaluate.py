"""python -m pipeline.evaluate: how robust any model is, by AutoAttack, the paper's attacks, and one's own.

>>> from pipeline.evaluate import evaluate_model  # doctest: +SKIP
>>> found = evaluate_model(model, data="mnist", norm="Linf", radius=0.3)  # doctest: +SKIP
>>> print(found)  # doctest: +SKIP

The same evaluation again attacks nothing; a killed one goes on from its receipts.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cluster.session import session
from pipeline.artifacts import Store
from pipeline.chunks import Chunk, commit_chunk, verdict_of
from pipeline.command import WorkersConfig, fail
from pipeline.evaluate_command import EvaluateCommand, parse
from pipeline.evaluation import (
    evaluate,
    final_measurements,
    merge,
    parts,
    subject_of,
)
from pipeline.examination import Origin, examine
from pipeline.findings import Findings, compare_with, read_results, write_findings
from pipeline.recipe import ChecksConfig, EvaluationConfig
from pipeline.reporting import model_contents
from pipeline.subjects import behind, check_subject, classifier_name, load_subject, split_of, undefended_of
from pipeline.tables import DATA, IMAGES, measurements_of, speed_table, with_our_rows
from pipeline.workers import Place, place_for_tasks
from stages.data.datasets import DataConfig, load_data
from stages.data.splits import Split
from stages.evaluation.accuracy import to_float
from stages.evaluation.attacks import Attack
from stages.evaluation.autoattack import AutoAttackConfig
from stages.evaluation.checks.examined import CheckSize
from stages.evaluation.measurement import FunctionConfig, Measurement, function_attack
from stages.evaluation.screening import Screening, ScreeningConfig, screen
from stages.fingerprint import fingerprint
from stages.rap.threat import Norm, ThreatModel

IMAGES_UNSET = 1000  # images of an evaluation that names no number
CHECKS = CheckSize()
Say = Callable[[str], None]


def evaluate_model(
    model: nn.Module,
    *,
    data: str | tuple[Tensor | np.ndarray, Tensor | np.ndarray],
    norm: Norm,
    radius: float,
    images: int = IMAGES_UNSET,
    version: str = "standard",
    attacks: Sequence[str | Attack] = (),
    quick: bool = False,
    checks: CheckSize | None = CHECKS,
    root: str | Path = "rap-runs",
    data_root: str | None = None,
    workers: WorkersConfig | None = None,
    say: Say = print,
) -> Findings:
    """Evaluate a model in eval mode that takes images in [0, 1] and returns logits: AutoAttack, PGD-40, own attacks.

    ``data`` is a data set that the project knows, of which the test images are taken, or (images, labels): uint8 or
    floats in [0, 1] that were 8-bit images. ``attacks`` are functions (model, images, labels, threat) -> images, or
    "module:function". With ``quick`` only a screening is made, without Ray. ``checks`` is the size of the checks that
    follow, None for none of them (nor are there any in L1).

    Raises ValueError, before any work, for a model, data or a radius that an attack could not judge.
    """
    threat = ThreatModel(norm=norm, radius=radius)
    named = data if isinstance(data, str) else "own images"
    if isinstance(data, str):
        loaded = load_data(DataConfig(name=data, root=data_root))  # pyright: ignore[reportArgumentType]
        test, classes, named = loaded.test, len(loaded.classes), loaded.name
    else:
        test, classes = split_of(*data), None
    config = EvaluationConfig(version=version, images=images, pgd_images=max(images, IMAGES_UNSET))  # pyright: ignore[reportArgumentType]
    given = [function_attack(attack) for attack in attacks]
    check_subject(model, test, classes=classes, threat=threat, random=version == "rand")
    place = workers or WorkersConfig()
    if quick:
        return quick_findings(model, test, threat, images, ScreeningConfig(), root=Path(root), data=named, say=say)
    measurements = [*final_measurements(config, threat), *own_measurements(given, threat, config)]
    return find(
        {"model": model}, test, measurements, given, checks, root=Path(root), workers=place, data=named, say=say
    )


def find(
    models: Mapping[str, nn.Module],
    test: Split,
    measurements: Sequence[Measurement],
    functions: Sequence[tuple[FunctionConfig, Attack]],
    checks: CheckSize | None,
    *,
    root: Path,
    workers: WorkersConfig,
    data: str,
    say: Say,
) -> Findings:
    """Every model under every measurement, on a Ray session that starts only if something is left to attack.

    ``checks`` is the size of the checks on the first model, after AutoAttack; None for none.
    """
    root = root.expanduser().absolute()
    subjects = {name: subject_of(model, test.images) for name, model in models.items()}
    began = time.perf_counter()
    with ExitStack() as stack:

        @cache
        def start() -> Place:
            return place_for_tasks(stack.enter_context(session(cpus=workers.cpus)), workers)

        found = evaluate(
            subjects,
            test,
            measurements,
            root=root,
            workers=start,
            progress=say,
            functions={config.path: function for config, function in functions},
        )
        name, first = next(iter(subjects.items()))
        auto, checked = found[name].get("autoattack"), None
        if checks is not None and auto is not None and auto.threat.norm != "L1":
            checked = examine(
                first,
                test,
                auto.threat,
                ChecksConfig(size=checks),
                auto=auto,
                origin=Origin(undefended=undefended_of(first.model, test)),
                root=root,
                workers=start,
                say=say,
            )
    return Findings(
        checked=checked,
        data=data,
        test=test.fingerprint,
        evaluations=found,
        fingerprints={name: subject.fingerprint for name, subject in subjects.items()},
        seconds=time.perf_counter() - began,
    )


def quick_findings(
    model: nn.Module,
    test: Split,
    threat: ThreatModel,
    images: int,
    config: ScreeningConfig,
    *,
    root: Path,
    data: str,
    say: Say,
) -> Findings:
    """A screening, batch after batch in this process: the order of the batches must not depend on their verdicts."""
    root, began = root.expanduser().absolute(), time.perf_counter()
    subject = subject_of(model, test.images)
    with torch.no_grad():
        classes = model(to_float(torch.from_numpy(test.images[:1]))).shape[1]
    strongest = "apgd-t" if classes > 3 else "apgd-dlr" if classes == 3 else "fab"
    attack = AutoAttackConfig(version="custom", attacks=("apgd-ce", strongest))
    plan = Measurement(name="screening", attack=attack, threat=threat, images=images, chunk=64)
    chunks = (
        Chunk(root=str(root), model=subject.fingerprint, threat=threat, attack=attack, split=part)
        for part in parts(test, plan)
    )
    receipts, attacked = [], 0

    def verdicts():  # noqa: ANN202 - a generator of ChunkVerdicts, each attacked when it is asked for
        nonlocal attacked
        for chunk in chunks:
            attacked += Store(root).get(chunk.kind, chunk.fingerprint) is None
            receipts.append(commit_chunk(chunk, model, device="cpu", functions={}))
            yield verdict_of(receipts[-1])

    screening: Screening = screen(verdicts(), config, progress=say)
    evaluation = merge(receipts, threat, attacked_now=attacked)
    return Findings(
        data=data,
        test=test.fingerprint,
        evaluations={"model": {"screening": evaluation}},
        fingerprints={"model": subject.fingerprint},
        seconds=time.perf_counter() - began,
        screening=screening,
    )


def own_measurements(
    given: Sequence[tuple[FunctionConfig, Attack]], threat: ThreatModel, config: EvaluationConfig
) -> list[Measurement]:
    """One's own attacks on the images of AutoAttack, so that they join the headline."""
    return [
        Measurement(name=each.path, attack=each, threat=threat, images=config.images, chunk=config.chunk)
        for each, _ in given
    ]


def run(command: EvaluateCommand, say: Say) -> tuple[Findings, Path]:
    """The command's evaluation from what is there to the end. Raises ValueError for what is refused before any work."""
    name = command.data or (DATA.get(command.table, "cifar10") if command.table else "digits")
    data = load_data(replace(command.data_config, name=name))
    model, trained = load_subject(command.model, command.weights, data)
    threat = command.threat(trained)
    models, test, classes = {"model": model}, data.test, len(data.classes)
    if command.behind:
        models = behind(model, load_subject(command.behind, None, data)[0])
    given = [function_attack(path) for path in command.attack]
    other = read_results(Path(command.compare), test=test.fingerprint) if command.compare else None
    images = command.images or (IMAGES if command.table else IMAGES_UNSET)
    config = replace(command.evaluation, images=images, pgd_images=max(images, IMAGES_UNSET))
    for each in models.values():
        check_subject(each, test, classes=classes, threat=threat, random=config.version == "rand")
    known = classifier_name(model)
    root = Path(command.root).expanduser().absolute()
    if command.table == "4.5":
        table = speed_table(model, to_float(torch.from_numpy(test.images[:64])), data=data.name, classifier=known)
        found = Findings(
            data=data.name, test=test.fingerprint, evaluations={}, fingerprints={}, seconds=0, tables=(table,)
        )
    elif command.quick:
        found = quick_findings(model, test, threat, images, command.screening, root=root, data=data.name, say=say)
    elif command.table:
        planned = measurements_of(command.table, images=images, chunk=config.chunk, seed=config.seed)
        found = find(models, test, planned, given, None, root=root, workers=command.workers, data=data.name, say=say)
        table = with_our_rows(command.table, found.evaluations, data=data.name, classifier=known)
        found = replace(found, tables=(table,))
    else:
        planned = [*final_measurements(config, threat), *own_measurements(given, threat, config)]
        size = None if command.skip_checks else command.checks
        found = find(models, test, planned, given, size, root=root, workers=command.workers, data=data.name, say=say)
    if other is not None:
        found = replace(found, comparison=compare_with(found, other))
    key = fingerprint("evaluation", 1, models=found.fingerprints, test=found.test, command=asdict(command.identity))
    directory = root / "evaluations" / (command.name or f"{name}-{key[:8]}")
    if found.checked is not None:
        contents = model_contents(model, found, test, title=directory.name, classes=data.classes, classifier=known)
        found = replace(found, contents=contents)
    return found, directory


def main(argv: list[str] | None = None) -> int:
    """The command. Returns 0, 2 for input that was refused before any work, 130 when it was interrupted."""
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - began:6.1f} s] {text}", flush=True)

    command = parse(sys.argv[1:] if argv is None else argv)
    try:
        found, directory = run(command, say)
    except ValueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        say("interrupted; no finished chunk is lost, and the same command goes on from here")
        return 130
    paths = write_findings(found, directory, command.claim)
    print(f"\n{found}\n" + "".join(f"\n{name:14}{path}" for name, path in paths.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
