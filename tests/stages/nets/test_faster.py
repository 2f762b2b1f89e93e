"""Networks for training and generation: the same answers, with less to do."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages import numerics
from stages.nets.cnn import CNN
from stages.nets.faster import faster_adapter, faster_classifier
from stages.nets.resnet import ResNet18
from stages.nets.unet import UNet, UNetConfig
from stages.nets.wrn import WideResNet

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "ResNet-18": (lambda: ResNet18(3, 10, mean=(0.5,) * 3, std=(0.2,) * 3, width=8), 20, 0),
    "WideResNet": (lambda: WideResNet(3, 10, mean=(0.5,) * 3, std=(0.2,) * 3, depth=10, widen=1), 7, 4),
    "CNN": (lambda: CNN(3, 16, 10, (0.5,) * 3, (0.2,) * 3), 0, 0),
}


def settled(network: nn.Module) -> nn.Module:
    """In eval mode, with BatchNorms that shift and scale."""
    generator = torch.Generator().manual_seed(1)
    for norm in norms(network):
        for values in (norm.weight.data, norm.running_var):
            values.copy_(0.5 + torch.rand(values.shape, generator=generator))
        for values in (norm.bias.data, norm.running_mean):
            values.copy_(torch.randn(values.shape, generator=generator) / 4)
    return network.eval().requires_grad_(False)


def norms(network: nn.Module) -> list:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def is_channels_last(network: nn.Module) -> bool:
    """Of convolutions of which it can be told."""
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    wide = [weight for weight in weights if min(weight.shape[1:]) > 1]
    assert wide
    return all(weight.is_contiguous(memory_format=torch.channels_last) for weight in wide)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_frozen_classifier_keeps_its_answers_and_loses_the_norms_that_follow_convolutions(name):
    build, before, after = NETWORKS[name]
    classifier = settled(build())
    kept = copy.deepcopy(classifier.state_dict())
    faster = faster_classifier(classifier, IMAGES, frozen=True)
    assert (len(norms(classifier)), len(norms(faster))) == (before, after)
    assert is_channels_last(faster)
    torch.testing.assert_close(faster(IMAGES), classifier(IMAGES), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, kept[name]) for name, value in classifier.state_dict().items())


def test_a_classifier_that_is_trained_keeps_its_norms():
    classifier = settled(NETWORKS["ResNet-18"][0]())
    faster = faster_classifier(classifier, IMAGES, frozen=False)
    assert faster.state_dict().keys() == classifier.state_dict().keys()
    assert is_channels_last(faster)


class Peculiar(nn.Module):
    """A convolution, a BatchNorm, and something between or beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.linear = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)

    def features(self, images: Tensor) -> Tensor:
        return self.norm(self.convolution(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.features(images).mean((2, 3)))


class Beside(Peculiar):
    def features(self, images: Tensor) -> Tensor:
        hidden = self.convolution(images)
        return self.norm(hidden) + hidden


class Twice(Peculiar):
    def features(self, images: Tensor) -> Tensor:
        return self.norm(self.convolution(images)) + self.norm(self.convolution(images).relu())


class Between(Peculiar):
    def features(self, images: Tensor) -> Tensor:
        return self.norm(self.convolution(images).relu_())


class Flattening(Peculiar):
    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.features(images))
        return self.linear(features.view(len(features), -1)[:, :8])


@pytest.mark.parametrize(
    ("kind", "folds", "turns"),
    [
        (Peculiar, True, True),
        (Beside, False, True),
        (Twice, False, True),
        (Between, False, True),
        (Flattening, True, False),
    ],
)
def test_a_change_that_another_network_would_not_bear_is_not_made(kind, folds, turns):
    classifier = settled(kind())
    faster = faster_classifier(classifier, IMAGES, frozen=True)
    assert bool(norms(faster)) != folds
    assert is_channels_last(faster) == turns
    torch.testing.assert_close(faster(IMAGES), classifier(IMAGES), rtol=1e-5, atol=1e-5)


def test_networks_that_raise_at_a_change_stay_as_they_are(monkeypatch):
    def refuse(*_: object) -> None:
        raise TypeError("no")

    classifier = settled(Peculiar())
    monkeypatch.setattr("stages.nets.faster.fuse_conv_bn_eval", refuse)
    faster = faster_classifier(classifier, IMAGES, frozen=True)
    assert norms(faster)
    assert is_channels_last(faster)


def test_the_settings_of_the_caller_play_no_part_and_stay():
    classifier = settled(Peculiar())
    with torch.autocast("cpu", torch.bfloat16), numerics.Arithmetic(precision="tf32").applied():
        assert not norms(faster_classifier(classifier, IMAGES, frozen=True))
        assert torch.backends.cudnn.allow_tf32


def test_an_adapter_stays_as_it_is_on_a_cpu():
    adapter = UNet(UNetConfig(width=8), 3)
    assert faster_adapter(adapter) is adapter
    assert not is_channels_last(adapter)
