"""Base classifiers as artifacts: trained once for a recipe, each in a task of its own, or taken as they came."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from cluster.pool import run_tasks
from cluster.refs import Ref, put
from pipeline.artifacts import Artifact, Store
from pipeline.defend.plan import Plan
from pipeline.measure.subjects import inputs_of
from pipeline.placement import Workers, own_device
from pipeline.progress import Say, passing
from stages import numerics
from stages.evaluation.accuracy import Accuracy, clean_mask, on_device
from stages.evaluation.contract import check_model
from stages.nets.architectures import build_classifier
from stages.training.base_classifier import CHECKPOINT, train_classifier
from stages.weights import save_weights, unpack_weights


def classifiers_of(plans: Sequence[Plan], workers: Callable[[], Workers], say: Say) -> list[tuple[nn.Module, float]]:
    """The base classifier of each plan in eval mode on the CPU, and its accuracy on the hold-out; trained side by
    side where they are not there."""
    artifacts = [Store(plan.root).get("classifier", plan.classifier_fingerprint) for plan in plans]
    untrained = [i for i, plan in enumerate(plans) if plan.external is None and artifacts[i] is None]
    if untrained:
        place, config, images = workers(), plans[0].recipe.classifier, len(plans[0].classifier_split)
        more = f", and {len(plans) - 1} more of other seeds for checks 8 and 20" if len(plans) > 1 else ""
        say(f"training the classifier ({config.architecture}) on {images} images{more}")
        work = [(i, put(plans[i]), place.device) for i in untrained]
        cpus = max(place.cpus, config.threads)
        for (i, *_), artifact in run_tasks(_train, work, cpus=cpus, gpus=place.gpus, fresh=False, say=passing(say)):
            artifacts[i] = artifact
    return [_checked(plan, artifact) for plan, artifact in zip(plans, artifacts, strict=True)]


def _checked(plan: Plan, artifact: Artifact | None) -> tuple[nn.Module, float]:
    images, labels = torch.from_numpy(plan.data.holdout.images), torch.from_numpy(plan.data.holdout.labels)
    if artifact is None:
        assert plan.external is not None
        with numerics.verdict(threads=1):
            there = on_device(plan.external, own_device(plan.command.workers))
            return plan.external, Accuracy.from_mask(clean_mask(there, images, labels)).value
    classifier = _load(plan, artifact)
    check_model(classifier, images[:200], labels[:200], classes=len(plan.data.classes), threat=plan.recipe.threat)
    return classifier, artifact.metrics["holdout_accuracy"]


def _train(work: tuple[int, Ref[Plan], str], tell: Callable[[str], None]) -> Artifact:
    number, reference, device = work
    plan = reference.get()
    holdout = plan.data.holdout
    checkpoint = plan.root.below(f"classifiers/{plan.classifier_fingerprint}")

    def build() -> nn.Module:
        return build_classifier(plan.recipe.classifier, **inputs_of(plan.data))

    def write(directory: Path) -> dict:
        state = train_classifier(
            plan.recipe.classifier,
            plan.classifier_split,
            seed=plan.recipe.seed,
            build=build,
            device=device,
            checkpoint=checkpoint,
            progress=lambda line: tell(line if number == 0 else f"{line}, from seed {plan.recipe.seed}"),
        )
        save_weights(state, directory / "weights.safetensors")
        classifier = build()
        classifier.load_state_dict(state)
        images, labels = torch.from_numpy(holdout.images), torch.from_numpy(holdout.labels)
        with numerics.verdict(threads=1):
            return {"holdout_accuracy": Accuracy.from_mask(clean_mask(classifier.to(device), images, labels)).value}

    artifact = Store(plan.root).make(
        "classifier",
        plan.classifier_fingerprint,
        write,
        config=plan.recipe.classifier,
        inputs={"train": plan.classifier_split.fingerprint},
        device=device,
    )
    checkpoint.delete([CHECKPOINT])
    return artifact


def _load(plan: Plan, artifact: Artifact) -> nn.Module:
    with torch.random.fork_rng([]):
        classifier = build_classifier(plan.recipe.classifier, **inputs_of(plan.data))
    classifier.load_state_dict(unpack_weights(artifact.read("weights.safetensors"))[0])
    return classifier.eval()
