"""What is evaluated: models and images of any origin, and what is refused about them before any work is done."""

from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.evaluation import Subject, in_order, subject_of
from stages import numerics
from stages.data.datasets import ImageData
from stages.data.splits import Split
from stages.evaluation.accuracy import to_float
from stages.evaluation.contract import answer_of, check_images, check_model
from stages.nets.classifiers import ClassifierConfig, build_classifier, check_classifier
from stages.nets.resnet import ResNet18
from stages.nets.wrn import WideResNet
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel, check_radius
from stages.shipped import load_model

SAMPLE = 200  # test images on which a model is checked before anything is attacked


def split_of(images: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> Split:
    """Test images of one's own. Raises ValueError for images that are not 8-bit ones in [0, 255] or [0, 1]."""
    values, target = torch.as_tensor(images).cpu(), torch.as_tensor(labels).cpu().long()
    if values.dtype != torch.uint8:
        check_images(values, target, int(target.max()) + 1 if len(target) else 1)
        levels = (255 * values).round()
        if (255 * values - levels).abs().max() > 1e-3:  # far above the rounding of float16, far below half a level
            raise ValueError(
                "the images are not multiples of 1/255: evaluate on the 8-bit images as they are, and put resizing and "
                "normalisation into the model, so that the radius means pixels"
            )
        values = levels.to(torch.uint8)
    check_images(values.float() / 255, target, int(target.max()) + 1)
    return Split(values.numpy(), target.numpy(), np.arange(len(target)))


@numerics.verdict(threads=1)
def check_subject(
    model: nn.Module, test: Split, *, classes: int | None, threat: ThreatModel, random: bool = False
) -> None:
    """Refuse, with the reason, what no attack could judge: a model in train mode, probabilities, normalisation outside
    of the model, labels that are no classes, a radius in another unit. Raises ValueError.
    """
    check_radius(threat, int(np.prod(test.images.shape[1:])))
    chosen = in_order(test)[:SAMPLE]
    bytes_, labels = torch.from_numpy(test.images[chosen]), torch.from_numpy(test.labels)
    pixels = to_float(bytes_)
    if classes is None:
        answer = answer_of(model, pixels[:1])
        classes = answer.shape[1] if isinstance(answer, Tensor) and answer.ndim == 2 else int(labels.max()) + 1
    check_images(pixels[:1].expand(len(labels), -1, -1, -1), labels, classes)
    check_model(model, pixels, labels[chosen], classes=classes, random=random)
    if not random:
        check_classifier(model, classes=classes, images=bytes_, labels=labels[chosen])


def load_subject(path: str, weights: str | None, data: ImageData) -> tuple[nn.Module, ThreatModel | None]:
    """A model by its saved directory, with the ball that it was trained in, or by "module:function", in eval mode.

    Raises ValueError where there is none, or the weights do not fit.
    """
    if ":" not in path or Path(path).exists():
        if weights is not None:
            raise ValueError(f"--weights {weights}: the saved model {path} holds its own; leave --weights unset")
        model = load_model(path)
        return model, model.threat
    inputs = {"channels": data.channels, "size": data.size, "classes": len(data.classes)}
    try:
        config = ClassifierConfig(factory=path, weights=weights, epochs=0)
        with torch.random.fork_rng():
            return build_classifier(config, **inputs, mean=data.mean, std=data.std), None
    except ValueError as error:
        said = str(error).replace("classifier.factory", "--model").replace("classifier.weights", "--weights")
        raise ValueError(said) from error


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
