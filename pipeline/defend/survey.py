"""How far a run has come: its own functions, one after the other, up to the first that asks for workers."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import nn

from pipeline.artifacts import Store
from pipeline.defend.classifiers import classifiers_of
from pipeline.defend.plan import Plan
from pipeline.defend.searching import search, search_folder
from pipeline.defend.trained import examine_trained, selected_model, subjects_of
from pipeline.measure.chunks import Chunk
from pipeline.measure.evaluation import chunks_of, evaluate
from pipeline.measure.subjects import inputs_of
from stages.nets.architectures import build_classifier
from stages.training.setup import Setup


@dataclass(kw_only=True)
class Survey:
    """What is there of a run."""

    setup: Setup
    """With the attack that the search chose, once there is one; before, with a classifier that has no weights."""
    built: list[str] = field(default_factory=list)
    """The stages that are complete, in order."""
    model: str | None = None
    """The fingerprint of the trained model."""
    chunks: tuple[Chunk, ...] = ()
    """All chunks of the evaluation, once the model is there."""
    missing: tuple[Chunk, ...] = ()
    """Those of them that were not attacked yet."""


class _Missing(Exception):
    """A stage asked for workers, so it is not complete."""


def _no_workers() -> NoReturn:
    raise _Missing


def _say_nothing(text: str) -> None:
    """A survey has no progress."""


def survey(plan: Plan) -> Survey:
    """What is there of a plan's run. Nothing is made, and damaged files raise as they do in a run."""
    found = Survey(setup=untrained_setup(plan))
    with suppress(_Missing):
        _go_through(plan, found)
    return found


def untrained_setup(plan: Plan) -> Setup:
    """The loop's setup with a classifier that has no trained weights: enough to count and to time."""
    with torch.random.fork_rng([]):
        classifier: nn.Module = plan.external or build_classifier(plan.recipe.classifier, **inputs_of(plan.data))
    return plan.setup(classifier)


def _go_through(plan: Plan, found: Survey) -> None:
    recipe, test, store = plan.recipe, plan.data.test, Store(plan.root)
    (classifier, _), *others = classifiers_of([plan, *plan.others], _no_workers, _say_nothing)
    found.built.append("classifier")
    setup = plan.setup(classifier)
    if recipe.search.trials:
        plan = plan.with_recipe(
            search(setup, recipe, _no_workers, _say_nothing, folder=search_folder(plan, setup)).recipe
        )
    found.built.append("search")
    found.setup = setup = plan.setup(classifier)
    if not setup.is_complete:
        return
    found.built.append("rounds")
    robust, _ = selected_model(setup)
    subjects = subjects_of(plan, robust, classifier)
    found.model, measurements = subjects["robust"].fingerprint, plan.measurements
    groups = chunks_of(subjects, test, measurements, root=plan.root).values()
    found.chunks = tuple(chunk for group in groups for chunk in group)
    found.missing = tuple(chunk for chunk in found.chunks if store.get(chunk.kind, chunk.fingerprint) is None)
    evaluated = evaluate(subjects, test, measurements, root=plan.root, workers=_no_workers, say=_say_nothing)
    found.built.append("evaluation")
    auto, modules = evaluated["robust"][plan.autoattack.name], [other for other, _ in others]
    examine_trained(plan, setup, subjects, modules, auto=auto, workers=_no_workers, say=_say_nothing)
    found.built.append("checks")
