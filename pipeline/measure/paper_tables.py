"""The paper's tables as evaluations: what is measured for each, and our rows beside the paper's.

>>> [measurement.name for measurement in measurements_of("2", images=512, chunk=64, seed=0)]
['AutoAttack L2']
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import nn

from pipeline.artifacts import provenance
from pipeline.measure.outcome import Evaluation
from stages.evaluation.accuracy import Accuracy, device_of
from stages.evaluation.autoattack import AutoAttackConfig
from stages.evaluation.bpda import BPDAConfig
from stages.evaluation.classical import ClassicalConfig
from stages.evaluation.evidence import Row, Table
from stages.evaluation.measurement import MeasuredAttack, Measurement
from stages.evaluation.published import PAPER, Setting, beside
from stages.evaluation.throughput import images_per_second
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel

TableName = Literal["1", "2", "3", "4", "5", "6", "4.5"]
DATA: dict[str, Literal["mnist", "cifar10"]] = {"3": "mnist"}  # all others: CIFAR-10
IMAGES = 512  # as in the paper, whose images are those of DiffPure's repository; ours are a random choice
CIFAR_LINF, CIFAR_L2 = ThreatModel(norm="Linf", radius=8 / 255), ThreatModel(norm="L2", radius=0.5)
MNIST_LINF, MNIST_L2 = ThreatModel(norm="Linf", radius=0.3), ThreatModel(norm="L2", radius=1.5)

_NOISE, _DEEPFOOL, _FGSM = (ClassicalConfig(method=method) for method in ("gaussian-noise", "deepfool", "fgsm"))
_BIM, _BIM_TO_EDGE = ClassicalConfig(method="bim"), ClassicalConfig(method="bim", step_size=None)
TABLE_3: dict[str, tuple[ClassicalConfig, ThreatModel]] = {
    "L2 Gaussian noise": (_NOISE, MNIST_L2),
    "L2 DeepFool": (_DEEPFOOL, MNIST_L2),
    "L2 BIM": (_BIM, MNIST_L2),
    "Linf FGSM": (_FGSM, MNIST_LINF),
    "Linf DeepFool": (_DEEPFOOL, MNIST_LINF),
    "Linf BIM": (_BIM, MNIST_LINF),
    "L2 BIM to the edge": (_BIM_TO_EDGE, MNIST_L2),
    "Linf BIM to the edge": (_BIM_TO_EDGE, MNIST_LINF),
}


def measurements_of(table: str, *, images: int, chunk: int, seed: int) -> list[Measurement]:
    """What a table takes; Section 4.5 takes no attack."""
    auto = AutoAttackConfig(batch=chunk, seed=seed)
    if table == "3":
        named: dict[str, tuple[MeasuredAttack, ThreatModel]] = {**TABLE_3}
    elif table == "4":
        named = {"AutoAttack Linf": (auto, CIFAR_LINF), "AutoAttack L2": (auto, CIFAR_L2)}
    elif table == "5":
        both = (BPDAConfig(seed=seed), BPDAConfig(seed=seed, backward="full"))
        named = {attack.name: (attack, CIFAR_LINF) for attack in both}
    elif table == "4.5":
        named = {}
    else:
        threat = CIFAR_L2 if table == "2" else CIFAR_LINF
        named = {f"AutoAttack {threat.norm}": (auto, threat)}
    return [
        Measurement(name=name, attack=attack, threat=threat, images=images, chunk=chunk)
        for name, (attack, threat) in named.items()
    ]


def with_our_rows(
    table: str, found: Mapping[str, Mapping[str, Evaluation]], *, data: str, classifier: str | None
) -> Table:
    """The paper's table with a row of ours for every subject, or as many as it takes to say the same."""
    if table == "6":
        robust = {name: next(iter(evaluations.values())).robust for name, evaluations in found.items()}
        rows = [Row(name="ours", values=tuple(robust[name] for name in PAPER["6"].table.columns))]
    else:
        rows = [row for name, evaluations in found.items() for row in _rows(table, name, evaluations)]
    images = {len(each.rows) for evaluations in found.values() for each in evaluations.values()}
    published = PAPER[table].setting
    attacks = {
        each.name for evaluations in found.values() for each in evaluations.values() if "standard" in each.attack
    }
    setting = Setting(
        data=data,
        threat=published.threat,
        attack=", ".join(sorted(attacks)) or published.attack,
        images=max(images),
        classifier=classifier,
    )
    return beside(PAPER[table], rows, setting)


def _rows(table: str, name: str, found: Mapping[str, Evaluation]) -> list[Row]:
    clean = next(iter(found.values())).clean
    robust = {attack: evaluation.robust for attack, evaluation in found.items()}
    if table == "3":
        columns = PAPER["3"].table.columns[1:]
        edge = {column: robust.get(f"{column} to the edge", robust[column]) for column in columns}
        return [
            _row(f"ours: {name}", (clean, *(robust[column] for column in columns))),
            _row(f"ours: {name}", (clean, *edge.values()), "BIM with steps of 2.5 radius / 20, which reach the edge"),
        ]
    if table == "4":
        return [_row(f"ours: {name}", (clean, robust["AutoAttack Linf"], robust["AutoAttack L2"]))]
    if table == "5":
        return [_row(f"ours: {name}, {attack}", (clean, accuracy)) for attack, accuracy in robust.items()]
    (accuracy,) = robust.values()
    return [_row(f"ours: {name}", (None, clean, accuracy))]


def _row(name: str, values: tuple[Accuracy | None, ...], setting: str = "") -> Row:
    return Row(name=name, values=values, setting=setting)


def speed_table(
    model: RobustClassifier,
    images: torch.Tensor,
    *,
    data: str,
    classifier: str | None,
    say: Callable[[str], None] = lambda line: None,
) -> Table:
    """Section 4.5: images a second without the adapter, and with it at 1 .. T reverse steps."""
    steps = [step for step in (1, 2, 4, 8, 16) if step < model.steps] + [model.steps]
    models: dict[str, nn.Module] = {"without the adapter": model.classifier}
    for step in steps:
        models[f"{step} reverse step{'s' if step > 1 else ''}"] = model.with_reverse_steps(step)
    rates = images_per_second(models, images, progress=say)
    rows = [
        Row(name=f"ours, {name}", values=(round(rate, 1),), setting=f"batches of {len(images)}")
        for name, rate in rates.items()
    ]
    hardware = f"{provenance(device_of(model).type, 0)['device']}, {torch.get_num_threads()} threads"
    return beside(PAPER["4.5"], rows, Setting(data=data, classifier=classifier, hardware=hardware))
