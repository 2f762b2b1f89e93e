"""The paper's tables with our rows: which attacks they take, and what stands in which column."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.measure.outcome import Evaluation
from pipeline.measure.paper_tables import measurements_of, speed_table, with_our_rows
from pipeline.tell.text import table_text
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.measurement import Measurement, described
from stages.evaluation.published import PAPER
from stages.nets.cnn import CNN
from stages.nets.unet import UNET_SIZES, UNet
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel

IMAGES = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)


def evaluation(measurement: Measurement, robust: int) -> Evaluation:
    """An evaluation of 10 images, of which 9 are classified correctly and some remain robust."""
    verdicts = ("clean", *["broken"] * (9 - robust), *[None] * robust)
    return Evaluation(
        attack=described(
            measurement.attack, nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), IMAGES, measurement.threat
        ),
        threat=measurement.threat,
        rows=np.arange(10),
        verdicts=verdicts,
        flags=(),
        unverified=0,
        attacked_now=1,
        seconds=1.0,
        receipts=(),
    )


@pytest.mark.parametrize("table", ["1", "2", "3", "4", "5", "6"])
def test_our_rows_fill_the_papers_columns(table: str) -> None:
    plan = measurements_of(table, images=10, chunk=5, seed=0)
    subjects = PAPER["6"].table.columns if table == "6" else ("model",)
    found = {
        name: {each.name: evaluation(each, robust) for robust, each in enumerate(plan, first)}
        for first, name in enumerate(subjects)
    }
    filled = with_our_rows(table, found, data="CIFAR-10 (JPEG q75)", classifier="ResNet18")
    ours = [row for row in filled.rows if not row.source]
    assert ours
    for row in ours:
        assert len(row.values) == len(filled.columns)
        assert isinstance(row.values[-1], Accuracy)
        assert "data CIFAR-10 (JPEG q75) instead of" in row.setting
    assert "RAP (the paper)" in table_text(filled)


def test_table_3_reports_bim_as_the_paper_ran_it_and_to_the_edge() -> None:
    plan = measurements_of("3", images=10, chunk=5, seed=0)
    found = {"model": {each.name: evaluation(each, 1 if each.name.endswith("edge") else 5) for each in plan}}
    rows = with_our_rows("3", found, data="MNIST", classifier="CNN").rows[-2:]
    shares = [[value.value for value in row.values if isinstance(value, Accuracy)] for row in rows]
    assert shares == [[0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [0.9, 0.5, 0.5, 0.1, 0.5, 0.5, 0.1]]
    assert [row.setting for row in rows] == ["", "BIM with steps of 2.5 radius / 20, which reach the edge"]


def test_section_4_5_measures_the_adapter_at_one_to_t_reverse_steps() -> None:
    classifier, threat = CNN(1, 8, 10, (0.3,), (0.4,)), ThreatModel(radius=0.1)
    model = RobustClassifier(UNet(UNET_SIZES["tiny"], 1), classifier, steps=3, threat=threat)
    table = speed_table(model.eval(), torch.rand(2, 1, 8, 8), data="digits", classifier="CNN")
    assert [row.name.removeprefix("ours, ") for row in table.rows[2:]] == [
        "without the adapter",
        "1 reverse step",
        "2 reverse steps",
        "3 reverse steps",
    ]
    assert model.times == [3]
