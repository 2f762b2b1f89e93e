"""What is evaluated: models and images of any origin, and what is refused about them before any work is done."""

from typing import TypeGuard

import numpy as np
import torch
from torch import nn

from pipeline.artifacts import in_job_copy
from pipeline.exits import settings_called
from pipeline.measure.evaluation import Subject, in_order, subject_of
from stages.data.datasets import NAMES, DataConfig, ImageData, load_data
from stages.data.formats import DataError
from stages.data.images import check_labels, paired
from stages.data.splits import Split
from stages.evaluation.contract import check_model, check_module, classes_of
from stages.nets.architectures import ClassifierConfig, build_classifier
from stages.nets.resnet import ResNet18
from stages.nets.wrn import WideResNet
from stages.paths import local_path
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel, check_radius
from stages.shipped import load_model

SAMPLE = 200  # test images on which a model is checked before anything is attacked


def known_data(config: DataConfig, prefix: str) -> ImageData:
    """A data set that the project knows. Raises DataError in words of whoever asks, whose settings begin with
    ``prefix`` and end as those of `DataConfig`."""
    lost = ""
    try:
        if config.name != "digits" and in_job_copy(config.folder):
            lost = (
                f"{prefix}root {config.folder} lies in the copy of its working directory in which a job runs, and "
                "which Ray removes: give an absolute path that every node sees"
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
            f"data is {found}; expected the name of a data set, {', '.join(NAMES)}, or (images, labels): put those of "
            "a loader or a Dataset into one tensor each, with torch.stack"
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


def load_subject(
    path: str, weights: str | None, data: ImageData, flag: str = "--model"
) -> tuple[nn.Module, ThreatModel | None]:
    """A model by its saved directory, with the ball that it was trained in, or by "module:function", in eval mode.

    ``flag`` is the one that names it. Raises ValueError where there is none, or the weights do not fit.
    """
    place = local_path(path, flag)
    if ":" not in path or place.exists():
        if weights is not None:
            raise ValueError(f"--weights {weights}: the saved model {path} holds its own; leave --weights unset")
        model = load_model(place)
        return model, model.threat
    inputs = {"channels": data.channels, "size": data.size, "classes": len(data.classes)}
    with settings_called({"classifier.factory": flag, "classifier.weights": "--weights"}), torch.random.fork_rng([]):
        config = ClassifierConfig(factory=path, weights=weights, epochs=0)
        return build_classifier(config, **inputs, mean=data.mean, std=data.std), None


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
    if isinstance(classifier, ResNet18):
        width = classifier.conv1.out_channels
        return "ResNet-18" if width == 64 else f"ResNet-18 of width {width}"
    return "WRN-28-10" if isinstance(classifier, WideResNet) else type(classifier).__name__
