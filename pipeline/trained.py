"""What a run trained: the robust classifier that is shipped, and what the checks may know of its origin."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from pipeline.evaluation import Subject, subject_of
from pipeline.examination import Origin
from pipeline.plan import Plan
from stages.evaluation.checks.explanations import SelectionFacts
from stages.rap.robust import RobustClassifier
from stages.training.rounds import Setup, load_trained


def shipped_model(setup: Setup) -> tuple[RobustClassifier, dict]:
    """The robust classifier with the weights that the judge liked best, and which those are."""
    weights, version = setup.journal.best_weights() if setup.config.schedule.rounds else (setup.versions.load(0), 0)
    robust = load_trained(setup.build(), weights)
    judged = {line["round"] + 1: line["judge"] for line in setup.journal.lines() if "judge" in line}
    return robust, {"version": version, "of": setup.config.schedule.rounds, "judge": judged.get(version)}


def origin_of(plan: Plan, setup: Setup, undefended: Subject, others: Sequence[nn.Module]) -> Origin:
    """What the checks may know of how the robust classifier came about."""
    data = plan.data
    trained = (data.train, plan.classifier_split) if plan.external is None else (data.train,)
    rows = np.concatenate([split.rows for split in trained])
    selection = SelectionFacts(
        selection=data.holdout.fingerprint,
        trained=tuple(split.fingerprint for split in trained),
        test=data.test.fingerprint,
        shared_images=int(np.isin(data.holdout.rows, rows).sum()),
        images=len(data.holdout),
        external_weights=plan.external is not None,
    )
    return Origin(
        undefended=undefended,
        others=tuple(subject_of(other, data.test.images) for other in others),
        selection=selection,
        setup=setup,
    )
