"""What is evaluated: models and images of any origin, and what is refused about them before any work is done."""

from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.artifacts import in_job_copy
from pipeline.measure.evaluation import Subject, in_order, subject_of
from stages import numerics
from stages.data.datasets import KINDS, NAMES, DataConfig, ImageData, load_data
from stages.data.formats import DataError
from stages.data.images import check_labels, paired
from stages.data.splits import Split
from stages.evaluation.accuracy import device_of, evaluating, to_float
from stages.evaluation.contract import answer_of, check_model, check_module, classes_of
from stages.models import ModelConfig, bring_model
from stages.nets.architectures import ClassifierConfig
from stages.nets.interface import Interface, logits_key, through_interface
from stages.nets.resnet import ResNet18
from stages.nets.wrn import WideResNet
from stages.paths import local_path
from stages.pretrained import PREFIX, model_directory
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel, check_radius
from stages.shipped import load_base, load_model

SAMPLE = 200  # test images on which a model is checked before anything is attacked


def known_data(config: DataConfig, prefix: str) -> ImageData:
    """A data set that the project knows. Raises DataError in words of whoever asks, whose settings begin with
    ``prefix`` and end as those of `DataConfig`."""
    lost = ""
    try:
        if (place := config.place) is not None and in_job_copy(place):
            setting = f"{prefix}root {place}" if place == config.folder else f"--data {config.name}"
            lost = (
                f"{setting} lies in the copy of its working directory in which a job runs, and which Ray removes: give "
                "an absolute path that every node sees"
            )
        if not (lost and config.download):
            return load_data(config)
    except DataError as error:
        raise DataError(str(error).replace("--data.", prefix) + (lost and f" ({lost})")) from error
    raise DataError(lost)


def own_data(data: object) -> Split:
    """Test images of one's own, of (images, labels). Raises ValueError for anything else, as `split_of` does."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        found = f"a {type(data).__name__}" + (f" of {len(data)}" if isinstance(data, tuple | list) else "")
        raise ValueError(
            f"data is {found}; expected the name of a data set, {', '.join([*NAMES, *KINDS])}, or (images, labels): "
            "put those of a loader or a Dataset into one tensor each, with torch.stack"
        )
    return split_of(*data)


def split_of(images: object, labels: object) -> Split:
    """Test images of one's own. Raises ValueError for images that are not 8-bit ones in [0, 255] or [0, 1], and for
    labels that are no class numbers."""
    pixels, numbers = paired(images, labels)
    return Split(pixels.numpy(force=True), numbers.numpy(force=True), np.arange(len(numbers)))


def check_subject(
    model: nn.Module, test: Split, *, classes: int | None, threat: ThreatModel, random: bool = False
) -> None:
    """Refuse, with the reason, what no attack could judge: what breaks the model contract, labels that are no classes,
    a radius in another unit. Raises ValueError.
    """
    check_module(model)
    check_radius(threat, int(np.prod(test.images.shape[1:])))
    chosen = in_order(test)[:SAMPLE]
    images, labels = torch.from_numpy(test.images[chosen]), torch.from_numpy(test.labels)
    known = classes or classes_of(model, images) or max(2, int(labels.max()) + 1)
    check_labels(labels, classes=known)
    check_model(model, images, labels[chosen], classes=known, threat=threat, random=random)


def is_saved(config: ModelConfig, called: str) -> bool:
    """Whether a model is a saved one, by its directory or from the package. Raises ValueError for a path that can be
    none."""
    name = config.name
    return name is not None and (name.startswith(PREFIX) or ":" not in name or local_path(name, called).exists())


def load_subject(config: ModelConfig, data: ImageData, called: str = "--model") -> tuple[nn.Module, ThreatModel | None]:
    """A model in eval mode, and of a saved one the ball that it was trained in.

    ``called`` is the flag that names it. Raises ValueError where there is none, or the weights do not fit.
    """
    if is_saved(config, called):
        model = load_model(_saved(config, called))
        return model, model.threat
    return bring_model(config, ClassifierConfig(), inputs_of(data), called=called)[0], None


def load_base_classifier(config: ModelConfig, own: ClassifierConfig, data: ImageData) -> tuple[nn.Module, dict]:
    """A classifier in eval mode to train a defence in front of, that of a saved model without its adapter; and the
    arguments by which `save_model` describes it.

    Raises ValueError as `load_subject` does.
    """
    if is_saved(config, "--model"):
        return load_base(_saved(config, "--model"))
    inputs = inputs_of(data)
    classifier, known = bring_model(config, own, inputs)
    return classifier, {"classifier": own, "model": known, "inputs": inputs}


def inputs_of(data: ImageData) -> dict[str, Any]:
    """The arguments of `build_classifier` beside its config."""
    return {
        "channels": data.channels,
        "size": data.size,
        "classes": len(data.classes),
        "mean": data.mean,
        "std": data.std,
    }


def _saved(config: ModelConfig, called: str) -> Path:
    """The directory of a saved model. Raises ValueError for settings that only others have."""
    if config != ModelConfig(name=config.name):
        raise ValueError(
            f"{called} {config.name} is a saved model, which holds its own weights and normalisation; leave out "
            f"--weights, --mean, --std and what begins with {called}."
        )
    return model_directory(str(config.name), called)


@numerics.verdict()
def answering_logits(model: nn.Module, test: Split, classes: int | None) -> nn.Module:
    """The model, or where it answers with a tuple, a dict or an object, what returns the logits of that.

    Raises ValueError as `check_module` and `answer_of` do. An answer without logits stays, for `check_model` to refuse.
    """
    check_module(model)
    with torch.no_grad(), evaluating(model):
        answer = answer_of(model, to_float(torch.from_numpy(test.images[:1])).to(device_of(model)))
    key = None if isinstance(answer, Tensor) else logits_key(answer, classes)
    return through_interface(model, output=key or "").eval()


def undefended_of(model: nn.Module, test: Split) -> Subject | None:
    """The classifier behind the adapter of one of our models; nothing is known of another."""
    return subject_of(model.classifier, test.images) if has_adapter(model) else None


def with_adapter(model: nn.Module, purpose: str) -> RobustClassifier:
    """The model, which has an adapter. Raises ValueError, with the purpose, for one that has none."""
    if not has_adapter(model):
        raise ValueError(f"{purpose}, and --model has no adapter: give a saved model (RUN/model) that has one")
    return model


def behind(model: nn.Module, classifier: nn.Module) -> dict[str, nn.Module]:
    """The subjects of the paper's Table 6: another classifier alone, the model, and that classifier behind its adapter.

    Raises ValueError for a model without an adapter.
    """
    defended = with_adapter(model, "--behind puts another classifier behind the model's adapter")
    alone = classifier.classifier if isinstance(classifier, RobustClassifier) else classifier
    return {"AT": alone, "RAP": defended, "RAP+AT": defended.with_classifier(alone)}


def has_adapter(model: nn.Module) -> TypeGuard[RobustClassifier]:
    """Whether it is one of our models, with an adapter in front of its classifier."""
    return isinstance(model, RobustClassifier) and model.adapter is not None


def classifier_name(model: nn.Module) -> str:
    """The classifier's architecture as the field writes it, else the name of its class."""
    classifier = model.classifier if isinstance(model, RobustClassifier) else model
    classifier = classifier.network if isinstance(classifier, Interface) else classifier
    if isinstance(classifier, ResNet18):
        width = classifier.conv1.out_channels
        return "ResNet-18" if width == 64 else f"ResNet-18 of width {width}"
    return "WRN-28-10" if isinstance(classifier, WideResNet) else type(classifier).__name__
