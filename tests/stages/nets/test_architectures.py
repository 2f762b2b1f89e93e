"""Building the base classifiers that are trained here."""

import math

import pytest
from torch import nn

from stages.nets.architectures import ClassifierConfig, build_classifier
from stages.nets.cnn import CNN
from stages.nets.resnet import ResNet18
from stages.nets.wrn import WideResNet


def build(config: ClassifierConfig, size: int = 8) -> nn.Module:
    return build_classifier(config, channels=1, size=size, classes=10, mean=(0.3,), std=(0.4,))


@pytest.mark.parametrize(
    ("architecture", "kind"), [("cnn", CNN), ("resnet18-narrow", ResNet18), ("wrn-28-10", WideResNet)]
)
def test_a_named_architecture_is_built_in_eval_mode(architecture, kind: type):
    classifier = build(ClassifierConfig(architecture=architecture))
    assert isinstance(classifier, kind)
    assert not classifier.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "classifier.batch is 0"),
        ({"threads": 0}, "classifier.threads is 0; it must be at least 1"),
        ({"learning_rate": 0.0}, "classifier.learning_rate is 0.0"),
        ({"learning_rate": math.nan}, "classifier.learning_rate is nan"),
        ({"weight_decay": -1.0}, "classifier.weight_decay -1.0"),
        ({"label_smoothing": 1.0}, r"classifier\.label_smoothing is 1; it must lie in \[0, 1\)"),
        ({"epochs": 0}, "classifier.epochs is 0; it must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ClassifierConfig(**settings)
