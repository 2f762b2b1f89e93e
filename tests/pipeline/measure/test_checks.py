"""The checks on a model, fanned out: what is measured for each, and that nothing is done twice."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.session import Cluster
from pipeline.measure.checks import Known, examine, robust_accuracy
from pipeline.measure.evaluation import subject_of
from pipeline.measure.outcome import Evaluation
from pipeline.placement import Place
from pipeline.recipe import ChecksConfig
from stages.data.datasets import DataConfig, load_data
from stages.data.splits import Split
from stages.evaluation.checks.examined import CheckSize
from stages.evaluation.checks.explanations import SelectionFacts
from stages.rap.threat import ThreatModel
from stages.training.ablations import PARTS
from stages.training.setup import Setup

pytestmark = pytest.mark.ray

THREAT = ThreatModel(norm="Linf", radius=0.2)
SIZE = CheckSize(
    images=6, steps=4, short_steps=2, restarts=1, queries=10, draws=5, gradient_images=2, binarized=2, inner=16
)
CONFIG = ChecksConfig(size=SIZE, budget=0.5, ablation_images=20)
FACTS = SelectionFacts(selection="holdout", trained=("train",), test="test", shared_images=0, images=32)


def evaluation(test: Split) -> Evaluation:
    """What AutoAttack might have found on twelve images, in an order that is not that of their rows."""
    rows = test.rows[[5, 3, 8, 1, 0, 2, 4, 6, 7, 9, 10, 11]]
    verdicts = ("apgd-ce", "square", *[None] * 10)
    nothing = {"flags": (), "unverified": 0, "attacked_now": 0, "seconds": 0.0, "receipts": ()}
    attack = {"kind": "autoattack", "name": "AutoAttack standard", "standard": True}
    return Evaluation(attack=attack, threat=THREAT, rows=rows, verdicts=verdicts, **nothing)


@pytest.fixture
def test() -> Split:
    return load_data(DataConfig(name="digits")).test.take(np.arange(24))


def test_all_checks_are_answered_once_and_from_receipts_again(
    make_setup: Callable[..., Setup], test: Split, ray_session: Cluster, tmp_path: Path
) -> None:
    setup = make_setup(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        subject = subject_of(setup.build(), test.images)
    undefended = subject_of(setup.classifier, test.images)
    said: list[str] = []

    def run(**changes: object):
        known = Known(auto=evaluation(test), undefended=undefended, others=(undefended,), selection=FACTS, setup=setup)
        place = Place(device="cpu", cpus=1, gpus=0)
        given = {"root": tmp_path, "workers": lambda: place} | changes
        return examine(subject, test, CONFIG, known, say=said.append, **given)  # pyright: ignore[reportArgumentType]

    found = run()
    assert [check.number for check in found.checks] == list(range(1, 21))
    assert found.done_now == 1 + len(PARTS) + 2
    assert found.check(17).evidence["budget"] == found.check(18).evidence["budget"] == 0.5
    assert {"defence", "denoising only", "untrained adapter"} <= found.check(17).evidence.keys()
    assert found.check(19).verdict == "pass"
    assert sum("PGD-20" in line for line in said) == len(PARTS) + 2
    # AutoAttack's verdicts belong to their rows, whatever order they came in
    robust = dict(zip(found.rows.tolist(), found.robust.tolist(), strict=True))
    assert not robust[test.rows[5]]
    assert not robust[test.rows[3]]
    worst = robust_accuracy([evaluation(test)], found)
    assert (worst.correct, worst.images) == (int(found.robust.sum()), 12)

    again = run(workers=lambda: pytest.fail("nothing is left to do"))
    assert again.done_now == 0
    assert (again.checks, again.curves, again.attacks) == (found.checks, found.curves, found.attacks)


def test_a_model_from_elsewhere_gets_the_checks_that_need_no_training(
    make_setup: Callable[..., Setup], test: Split, ray_session: Cluster, tmp_path: Path
) -> None:
    subject = subject_of(make_setup(tmp_path).classifier, test.images)
    place = Place(device="cpu", cpus=1, gpus=0)
    found = examine(
        subject,
        test,
        CONFIG,
        Known(auto=evaluation(test)),
        root=tmp_path,
        workers=lambda: place,
        say=lambda line: None,
    )
    assert found.done_now == 1
    assert len(found.rows) == 12
    verdicts = {check.number: check.verdict for check in found.checks}
    assert all(verdicts[number] == "not applicable" for number in (17, 18, 19, 20))
    assert verdicts[1] == "pass"
