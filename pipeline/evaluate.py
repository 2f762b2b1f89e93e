"""python -m pipeline.evaluate: how robust any model is, by AutoAttack, the paper's attacks, and one's own.

>>> from pipeline.evaluate import evaluate_model  # doctest: +SKIP
>>> found = evaluate_model(model, data="mnist", norm="Linf", radius=0.3)  # doctest: +SKIP
>>> print(found)  # doctest: +SKIP

The same evaluation again attacks nothing; a killed one resumes.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.artifacts import BEGUN, usable_root
from pipeline.evaluate_flags import EvaluateCommand, parse
from pipeline.exits import conduct, refusing, settings_called
from pipeline.flags import WorkersConfig
from pipeline.measure.findings import Findings
from pipeline.measure.measuring import Asked, find, measurements_on, quick_findings, screening_on
from pipeline.measure.paper_tables import IMAGES, measurements_of, speed_table, with_our_rows
from pipeline.measure.subjects import (
    answering_logits,
    behind,
    check_subject,
    classifier_name,
    has_adapter,
    known_data,
    load_subject,
    own_data,
    with_adapter,
)
from pipeline.placement import demanded_device, own_device
from pipeline.progress import Say, passing
from pipeline.recipe import EvaluationConfig
from pipeline.tell.other_results import common_ball, compare_with, read_results
from pipeline.tell.report_contents import contents_of, pictures_of
from pipeline.tell.results import Results, ending, write_results
from stages.data.datasets import DataConfig, ImageData
from stages.data.splits import Split
from stages.evaluation.accuracy import device_of, on_device, to_float
from stages.evaluation.attacks import Attack
from stages.evaluation.autoattack import Version
from stages.evaluation.checks.examined import CheckSize
from stages.evaluation.measurement import function_attacks
from stages.evaluation.screening import ScreeningConfig
from stages.fingerprint import fingerprint
from stages.models import ModelConfig
from stages.paths import local_path
from stages.rap.threat import Norm, ThreatModel
from stages.report import Contents
from stages.settings import check_listener, checked
from stages.storage import Storage

Data = str | DataConfig | tuple[Tensor | np.ndarray, Tensor | np.ndarray]
"""What --data names, a config of it, or images and labels."""
IMAGES_UNSET = 1000  # images of an evaluation that names no number
BESIDE = ("1", "2", "3", "4")  # tables that show what the classifier does without its adapter
SETTINGS = {"evaluation.attacks are": "autoattack is", "evaluation.": "", "threat.": "", "data.name": "data"}
"""The names of `evaluate_model` for the settings of configs."""
SPEED = "Section 4.5 compares a model with and without its adapter"


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """How `evaluate_model` evaluates, and where."""

    images: int = IMAGES_UNSET
    """Test images, all of them where there are fewer."""
    chunk: int = 64
    """Images that are attacked together, recorded and resumed as a whole: fewer take less memory."""
    version: Version = "standard"
    """AutoAttack's set of attacks."""
    autoattack: Sequence[str] = ()
    """The attacks of AutoAttack that its version "custom" runs."""
    attacks: Sequence[str | Attack] = ()
    """Own attacks: functions (model, images, labels, threat) -> images, or "module:function"."""
    quick: bool = False
    """Make only a screening, without Ray."""
    checks: CheckSize | None = field(default_factory=CheckSize)
    """The size of the checks that follow, None for none of them (nor are there any in L1)."""
    root: str | Path = "rap-runs"
    """Directory or URL of everything that is kept."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """Who works, and on which devices."""

    def __post_init__(self) -> None:
        for name in ("attacks", "autoattack"):
            given = getattr(self, name)
            if not isinstance(given, list | tuple):
                raise ValueError(  # noqa: TRY004 - a setting
                    f"{name} is {given!r}; pass a list, also of one: {name}=[...]"
                )
        for name, hint in (("images", int), ("checks", CheckSize | None), ("workers", WorkersConfig)):
            checked(getattr(self, name), hint, name)
        if self.quick and (self.attacks or self.autoattack or self.version != "standard"):
            raise ValueError(
                "a quick screening runs AutoAttack's APGD alone: leave out version, attacks and autoattack, or quick"
            )

    @property
    def evaluation(self) -> EvaluationConfig:
        """The config of the measurements. Raises ValueError, in the names of these settings."""
        with settings_called(SETTINGS):
            return EvaluationConfig(
                version=self.version,
                attacks=tuple(self.autoattack),
                images=self.images,
                pgd_images=self.images,
                chunk=self.chunk,
                batch=self.chunk,
            )


DEFAULTS = EvaluateSettings()


def evaluate_model(
    model: nn.Module,
    *,
    data: Data,
    norm: Norm,
    radius: float,
    settings: EvaluateSettings = DEFAULTS,
    say: Say = print,
) -> Results:
    """Evaluate a model in eval mode that takes images in [0, 1] and returns logits: AutoAttack, PGD-40, own attacks.

    ``data`` is what --data names, or a `DataConfig` of it (which may say where it lies, and that it be fetched), of
    which the test images are taken; or (images, labels): uint8 or floats in [0, 1] that were 8-bit images.

    Raises ValueError, before any work, for a model, data or a radius that an attack could not judge.
    """
    checked(settings, EvaluateSettings, "settings")
    check_listener(say, "say")
    with settings_called(SETTINGS):
        threat = ThreatModel(norm=norm, radius=radius)
    config, storage = settings.evaluation, usable_root(settings.root, "root")
    test, classes, named = _test_images(data)
    functions = function_attacks(settings.attacks)
    model = answering_logits(model, test, classes)
    check_subject(model, test, classes=classes, threat=threat, random=config.version == "rand")
    planned = (
        [screening_on(model, test, threat, config.images)]
        if settings.quick
        else measurements_on(model, test, threat, config, functions)
    )
    asked = Asked(
        models={"model": model},
        data=named,
        test=test,
        measurements=planned,
        functions=functions,
        checks=settings.checks,
    )
    if settings.quick:
        own = device_of(model).type
        device = own if own != "cpu" else demanded_device(settings.workers)
        return Results.of(quick_findings(asked, ScreeningConfig(), root=storage, device=device, say=say))
    return Results.of(find(asked, root=storage, workers=settings.workers, say=say))


def _test_images(data: Data) -> tuple[Split, int | None, str]:
    """The test images of what was given, the number of classes where it is known, and the name."""
    if not isinstance(data, str | DataConfig):
        return own_data(data), None, "own images"
    with settings_called(SETTINGS):
        config = data if isinstance(data, DataConfig) else DataConfig(name=data)
    loaded = known_data(config, "DataConfig.")
    return loaded.test, len(loaded.classes), loaded.name


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A command with its models, images and attacks, of which all that can be refused before work was refused."""

    command: EvaluateCommand
    data: ImageData
    model: nn.Module
    threat: ThreatModel
    asked: Asked
    """Of the model, in a table beside the undefended one, with --behind beside two others."""
    other: Mapping[str, Any] | None
    """The evaluation to compare with."""


def prepare(command: EvaluateCommand) -> Prepared:
    """Load what a command names. Raises ValueError, in words for the user, for anything that would fail later."""
    usable_root(command.root)
    data = known_data(command.data, "--data.")
    model, trained = load_subject(command.model, data)
    threat = command.threat(trained)
    models: dict[str, nn.Module] = {"model": model}
    if command.behind:
        models = behind(model, load_subject(ModelConfig(name=command.behind), data, "--behind")[0])
    if command.table == "4.5":
        with_adapter(model, SPEED)
    elif command.table in BESIDE and has_adapter(model):
        models["undefended classifier"] = model.classifier
    functions = function_attacks(command.attack)
    images = command.images or (IMAGES if command.table else IMAGES_UNSET)
    config = replace(command.evaluation, images=images, pgd_images=images)
    for each in models.values():
        check_subject(each, data.test, classes=len(data.classes), threat=threat, random=config.version == "rand")
    if command.table:
        planned = measurements_of(command.table, images=images, chunk=config.chunk, seed=config.seed)
    elif command.quick:
        planned = [screening_on(model, data.test, threat, images)]
    else:
        planned = measurements_on(model, data.test, threat, config, functions)
    other = None
    if command.compare:
        other = read_results(local_path(command.compare, "--compare"), test=data.test.fingerprint)
        common_ball([each.threat for each in planned], other)
    return Prepared(
        command=command,
        data=data,
        model=model,
        threat=threat,
        asked=Asked(
            models=models,
            data=data.name,
            test=data.test,
            measurements=planned,
            functions=functions,
            checks=None if command.table or command.skip_checks else command.checks,
        ),
        other=other,
    )


def run(prepared: Prepared, say: Say) -> tuple[Results, Contents | None, Storage]:
    """The evaluation from what is there to the end, what its report says, and the directory where it belongs."""
    command, data, test = prepared.command, prepared.data, prepared.data.test
    root, known = usable_root(command.root), classifier_name(prepared.model)
    tables = []

    def place(fingerprints: Mapping[str, str]) -> Storage:
        key = fingerprint("evaluation", 1, models=fingerprints, test=test.fingerprint, command=asdict(command.identity))
        return root.below(f"evaluations/{command.name or f'{command.data.kind}-{key[:8]}'}")

    if command.table == "4.5":
        pixels = to_float(torch.from_numpy(test.images[:64]))
        say("images a second without the adapter and with 1 to T reverse steps, in turn")
        model = with_adapter(on_device(prepared.model, demanded_device(command.workers)), SPEED)
        tables = [speed_table(model, pixels, data=data.name, classifier=known, say=say)]
        found = Findings(data=data.name, test=test.fingerprint, evaluations={}, fingerprints={}, seconds=0)
    elif command.quick:
        device = demanded_device(command.workers)
        found = quick_findings(prepared.asked, command.screening, root=root, device=device, say=say)
    else:
        found = find(
            prepared.asked,
            root=root,
            workers=command.workers,
            say=say,
            begin=lambda fingerprints: place(fingerprints).put(BEGUN, b""),
        )
        if command.table:
            tables = [with_our_rows(command.table, found.evaluations, data=data.name, classifier=known)]
    results = Results.of(found, tables=tables)
    if prepared.other is not None:
        results = replace(results, comparison=compare_with(found, prepared.other))
    directory, contents = place(found.fingerprints), None
    if found.checked is not None:
        passing(say)("report")
        model = on_device(prepared.model, own_device(command.workers))
        pictures = pictures_of(model, test, prepared.threat)
        contents = contents_of(
            results, pictures, title=directory.name, classes=data.classes, description=known, classifier=known
        )
    return results, contents, directory


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code, as `conduct` says."""
    command = parse(sys.argv[1:] if argv is None else argv)
    with refusing():
        prepared = prepare(command)

    def work(say: Say) -> str:
        found, contents, directory = run(prepared, say)
        return ending(found, write_results(found, directory, claim=command.claim, contents=contents))

    return conduct(work, root=command.root, log_level=command.log_level)


if __name__ == "__main__":
    sys.exit(main())
