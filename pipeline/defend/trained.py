"""What a run trained: the robust classifier of the selected checkpoint, the undefended one, and the checks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from pipeline.defend.plan import Plan
from pipeline.defend.searching import Searched
from pipeline.measure.checks import Checked, Known, examine
from pipeline.measure.evaluation import Subject, subject_of
from pipeline.measure.outcome import Evaluation
from pipeline.placement import Place
from pipeline.progress import Say
from stages.evaluation.checks.explanations import SelectionFacts
from stages.rap.robust import RobustClassifier
from stages.training.setup import Setup, load_trained


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A robust classifier, and how it came about."""

    setup: Setup
    robust: RobustClassifier
    selected: Mapping[str, object]
    """The selected checkpoint: its version, of how many rounds, and the judge's verdict."""
    searched: Searched | None
    """The search that chose the recipe; None where there was none."""
    from_cache: Mapping[str, object] | None
    """What is to be said of first weights from another run's shards."""
    generated_now: int
    """Shards that this call made."""


def selected_model(setup: Setup) -> tuple[RobustClassifier, dict]:
    """The robust classifier with the weights of the selected checkpoint, and which those are."""
    weights, version = setup.journal.best_weights()
    robust = load_trained(setup.build(), weights)
    line = next(setup.journal.read(version - 1), {}) if version else {}
    return robust, {"version": version, "of": setup.config.schedule.rounds, "judge": line.get("judge")}


def subjects_of(plan: Plan, robust: RobustClassifier, classifier: nn.Module) -> dict[str, Subject]:
    """The models that a run evaluates, by name."""
    images = plan.data.test.images
    return {"robust": subject_of(robust, images), "undefended": subject_of(classifier, images)}


def examine_trained(
    plan: Plan,
    setup: Setup,
    subjects: Mapping[str, Subject],
    others: Sequence[nn.Module],
    *,
    auto: Evaluation,
    workers: Callable[[], Place],
    say: Say,
) -> Checked:
    """All 20 checks on a run's robust classifier; ``others`` are the classifiers of other seeds."""
    return examine(
        subjects["robust"],
        plan.data.test,
        plan.recipe.checks,
        Known(
            auto=auto,
            undefended=subjects["undefended"],
            others=tuple(subject_of(other, plan.data.test.images) for other in others),
            selection=_selection(plan),
            setup=setup,
        ),
        root=plan.root,
        workers=workers,
        say=say,
    )


def _selection(plan: Plan) -> SelectionFacts:
    """Which images trained, and by which the checkpoint was selected."""
    data = plan.data
    trained = (data.train, plan.classifier_split) if plan.external is None else (data.train,)
    rows = np.concatenate([split.rows for split in trained])
    return SelectionFacts(
        selection=data.holdout.fingerprint,
        trained=tuple(split.fingerprint for split in trained),
        test=data.test.fingerprint,
        shared_images=int(np.isin(data.holdout.rows, rows).sum()),
        images=len(data.holdout),
        external_weights=plan.external is not None,
    )
