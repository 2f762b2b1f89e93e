"""The base classifier as an artifact: trained once for a recipe, in a task of its own, or taken as it came."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cluster.pool import Ref, put, run_tasks
from pipeline.artifacts import Artifact, Store
from pipeline.plan import Plan
from pipeline.workers import Workers
from stages.nets.classifiers import build_classifier, check_classifier
from stages.training.classifier import clean_accuracy, train_classifier


def classifier_of(plan: Plan, workers: Callable[[], Workers], say: Callable[[str], None]) -> tuple[nn.Module, float]:
    """The base classifier in eval mode on the CPU, and its accuracy on the hold-out."""
    images, labels = torch.from_numpy(plan.data.holdout.images), torch.from_numpy(plan.data.holdout.labels)
    if plan.external is not None:
        return plan.external, clean_accuracy(plan.external, images, labels=labels)
    artifact = Store(plan.root).get("classifier", plan.classifier_fingerprint)
    if artifact is None:
        place = workers()
        say(f"training the classifier ({plan.recipe.classifier.architecture}) on {len(plan.classifier_split)} images")
        ((_, artifact),) = run_tasks(
            _train, [(put(plan), place.device)], cpus=max(place.cpus, plan.recipe.classifier.threads), gpus=place.gpus
        )
    classifier = _load(plan, artifact)
    check_classifier(classifier, classes=len(plan.data.classes), images=images[:200], labels=labels[:200])
    return classifier, artifact.metrics["holdout_accuracy"]


def _train(work: tuple[Ref[Plan], str]) -> Artifact:
    plan, device = work[0].get(), work[1]
    holdout = plan.data.holdout

    def build() -> nn.Module:
        return build_classifier(plan.recipe.classifier, **plan.network)  # pyright: ignore[reportArgumentType]

    def write(directory: Path) -> dict:
        state = train_classifier(
            plan.recipe.classifier,
            plan.classifier_split,
            seed=plan.recipe.seed,
            build=build,
            device=device,
            progress=lambda line: None,
        )
        save_file({name: value.contiguous() for name, value in state.items()}, directory / "weights.safetensors")
        classifier = build()
        classifier.load_state_dict(state)
        images, labels = torch.from_numpy(holdout.images), torch.from_numpy(holdout.labels)
        return {"holdout_accuracy": clean_accuracy(classifier.eval(), images, labels=labels)}

    return Store(plan.root).make(
        "classifier",
        plan.classifier_fingerprint,
        write,
        config=plan.recipe.classifier,
        inputs={"train": plan.classifier_split.fingerprint},
        device=device,
    )


def _load(plan: Plan, artifact: Artifact) -> nn.Module:
    with torch.random.fork_rng():
        classifier = build_classifier(plan.recipe.classifier, **plan.network)  # pyright: ignore[reportArgumentType]
    classifier.load_state_dict(load_file(artifact.path / "weights.safetensors"))
    return classifier.eval()
