"""The classifiers' networks: size, shape, and each image answered alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from stages.nets.cnn import CNN
from stages.nets.normalisation import Normalise
from stages.nets.resnet import ResNet18
from stages.nets.wrn import WideResNet

GREY = (0.5,)
COLOUR = (0.5, 0.5, 0.5)


def parameters(network: nn.Module) -> int:
    return sum(tensor.numel() for tensor in network.parameters())


def small_networks(channels: int, size: int) -> list[nn.Module]:
    grey = (0.25,) * channels
    return [
        CNN(channels, size, 10, mean=grey, std=grey),
        ResNet18(channels, 10, mean=grey, std=grey, width=8),
        WideResNet(channels, 10, mean=grey, std=grey, depth=10, widen=1),
    ]


def test_the_networks_are_those_of_their_sources():
    resnet, wide = ResNet18(3, 10, mean=COLOUR, std=COLOUR), WideResNet(3, 10, mean=COLOUR, std=COLOUR)
    # the figures that are known for the sources named in each module
    assert parameters(CNN(1, 28, 10, mean=GREY, std=GREY)) == 1_199_882
    assert parameters(resnet) == 11_173_962
    assert parameters(wide) == 36_479_194
    names = {"conv1.weight", "bn1.running_mean", "layer2.0.shortcut.1.weight", "linear.bias"}
    assert names <= resnet.state_dict().keys()
    names = {"block1.layer.3.conv2.weight", "block2.layer.0.convShortcut.weight", "fc.bias"}
    assert names <= wide.state_dict().keys()


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 33)])
def test_every_network_takes_images_of_any_size(channels: int, size: int):
    images = torch.rand(3, channels, size, size)
    for network in small_networks(channels, size):
        logits = network.eval()(images)
        assert logits.shape == (3, 10)
        assert logits.isfinite().all()


def test_an_image_is_answered_alone_in_eval_mode():
    images = torch.rand(5, 3, 16, 16)
    for network in small_networks(3, 16):
        network.eval()
        torch.testing.assert_close(network(images)[2:3], network(images[2:3]))


def test_normalisation_lies_inside_and_is_saved():
    images = torch.rand(2, 3, 8, 8)
    normalise = Normalise((0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    expected = (images - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.25, 2.0])[:, None, None]
    torch.testing.assert_close(normalise(images), expected)
    for network in small_networks(3, 8):
        assert network.state_dict()["normalise.std"].flatten().tolist() == [0.25, 0.25, 0.25]


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,))])
def test_a_normalisation_that_cannot_be_is_refused(mean: tuple[float, ...], std: tuple[float, ...]):
    with pytest.raises(ValueError, match="one of each for every channel"):
        Normalise(mean, std)


def test_a_depth_that_no_wide_resnet_has_is_refused():
    with pytest.raises(ValueError, match=r"depth of a WideResNet is 12; it must be 6 n \+ 4"):
        WideResNet(3, 10, mean=COLOUR, std=COLOUR, depth=12)


def test_images_too_small_for_the_cnn_are_refused():
    with pytest.raises(ValueError, match="images are 5x5; the CNN needs 6x6"):
        CNN(1, 5, 10, mean=GREY, std=GREY)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_cnn_answers_as_if_it_rectified_before_it_pools(layout: torch.memory_format):
    torch.manual_seed(0)
    network = CNN(1, 28, 10, mean=GREY, std=GREY).eval().to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    images = torch.rand(8, 1, 28, 28, requires_grad=True)

    def as_in_its_source() -> torch.Tensor:
        features = functional.relu(network.conv1(network.normalise(images)))
        features = functional.max_pool2d(functional.relu(network.conv2(features)), 2)
        return network.fc2(functional.relu(network.fc1(features.flatten(1))))

    wanted, found = as_in_its_source(), network(images)
    assert torch.equal(wanted, found)
    inputs = [images, *network.parameters()]
    gradients = zip(torch.autograd.grad(wanted.sum(), inputs), torch.autograd.grad(found.sum(), inputs), strict=True)
    assert all(torch.equal(one, other) for one, other in gradients)
