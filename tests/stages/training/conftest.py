"""Fixtures of the fits in a notebook."""

import pytest
from torch import nn

from stages.data.datasets import DataConfig, ImageData, load_data
from stages.nets.architectures import ClassifierConfig
from stages.nets.cnn import CNN
from stages.training.base_classifier import train_classifier


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """384 digits to train on, and those of the hold-out."""
    return load_data(DataConfig(name="digits", train_images=384))


@pytest.fixture(scope="session")
def classifier(digits: ImageData) -> nn.Module:
    """A classifier that is trained on them; once a session, since it takes seconds."""

    def build() -> nn.Module:
        return CNN(1, 8, 10, digits.mean, digits.std)

    network = build()
    config = ClassifierConfig(epochs=12)
    network.load_state_dict(train_classifier(config, digits.train, seed=0, build=build, progress=lambda line: None))
    return network.eval()
