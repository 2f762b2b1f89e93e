"""The adapter's U-Net: sizes, its start as the identity, independence of the batch, dependence on t."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stages.nets.resnet import ResNet18
from stages.nets.unet import UNET_SIZES, UNet, UNetConfig

SMALL = UNetConfig(width=8, multipliers=(1, 2, 2))
ATTENDING = UNetConfig(width=8, multipliers=(1, 2), attention=1)
PATCHED = UNetConfig(width=8, multipliers=(1, 2), patch=2)
SIGMOID = UNetConfig(width=8, multipliers=(1, 2), output="sigmoid")


def perturbed(config: UNetConfig, channels: int) -> UNet:
    """A U-Net whose weights are all away from their start, as after training."""
    torch.manual_seed(0)
    network = UNet(config, channels)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def times(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("config", [SMALL, ATTENDING, SIGMOID])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (15, 13), (7, 32)])
def test_the_estimate_has_the_shape_of_the_image(config: UNetConfig, size: tuple[int, int]):
    images = torch.rand(2, 3, *size)
    estimate = perturbed(config, 3)(images, times(1, 4))
    assert estimate.shape == images.shape
    assert estimate.isfinite().all()


def test_patches_take_images_whose_sides_they_divide():
    images = torch.rand(2, 1, 28, 6)
    assert perturbed(PATCHED, 1)(images, times(1, 4)).shape == images.shape


@pytest.mark.parametrize("config", [SMALL, ATTENDING, PATCHED])
def test_a_new_residual_adapter_returns_its_input(config: UNetConfig):
    images = torch.rand(2, 3, 10, 14)
    assert torch.equal(UNet(config, 3)(images, times(0, 9)), images)


def test_a_new_residual_adapter_can_learn():
    network = UNet(SMALL, 1)
    network(torch.rand(2, 1, 8, 8), times(1, 2)).square().sum().backward()
    assert network.tail.weight.grad is not None
    assert network.tail.weight.grad.abs().sum() > 0


def test_a_sigmoid_adapter_returns_pixels():
    estimate = perturbed(SIGMOID, 1)(torch.rand(2, 1, 8, 8), times(1, 2))
    assert 0 < estimate.min() < estimate.max() < 1


@pytest.mark.parametrize("config", [SMALL, ATTENDING, PATCHED])
def test_an_image_is_restored_alone(config: UNetConfig):
    network, images, t = perturbed(config, 3), torch.rand(4, 3, 12, 12), times(1, 2, 3, 4)
    together = network(images, t)
    torch.testing.assert_close(together[1:2], network(images[1:2], t[1:2]), rtol=1e-4, atol=1e-5)
    others = torch.cat([images[:2], torch.rand(2, 3, 12, 12)])
    torch.testing.assert_close(together[:2], network(others, t)[:2], rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_the_estimate_depends_on_t():
    network, images = perturbed(SMALL, 1), torch.rand(1, 1, 8, 8)
    estimates = [network(images, times(t)) for t in (0, 1, 2, 20)]
    for earlier, later in pairwise(estimates):
        assert (earlier - later).abs().max() > 1e-3


def test_each_image_has_its_own_t():
    network, image = perturbed(SMALL, 1), torch.rand(1, 1, 8, 8)
    mixed = network(image.expand(2, 1, 8, 8), times(1, 20))
    torch.testing.assert_close(mixed[1:], network(image, times(20)), rtol=1e-4, atol=1e-5)


def test_the_named_sizes_have_the_parameters_of_their_names():
    with torch.device("meta"):
        millions = {
            name: sum(tensor.numel() for tensor in UNet(config, 3).parameters()) / 1e6
            for name, config in UNET_SIZES.items()
        }
    assert millions["tiny"] < millions["small"] < millions["4M"]
    assert [round(millions[name]) for name in ("4M", "9M", "11M", "36M")] == [4, 9, 11, 36]


def test_the_adapter_for_one_gpu_costs_what_a_resnet_18_costs():
    images, t = torch.zeros(1, 3, 32, 32, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    with torch.device("meta"):
        adapter = UNet(UNET_SIZES["11M"], 3)
        classifier = ResNet18(3, 10, mean=(0.5,) * 3, std=(0.25,) * 3)
    parameters = [sum(tensor.numel() for tensor in network.parameters()) for network in (adapter, classifier)]
    assert parameters == [11_085_708, 11_173_962]
    operations = []
    for network, inputs in ((adapter, (images, t)), (classifier, (images,))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*inputs)
        operations.append(round(counter.get_total_flops() / 1e9, 2))
    assert operations == [1.12, 1.11]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 12}, "adapter.width is 12; it must be a multiple of 8"),
        ({"multipliers": ()}, "must be at least 1"),
        ({"multipliers": (1, 0)}, "must be at least 1"),
        ({"blocks": 0}, "must be at least 1"),
        ({"patch": 0}, "must be at least 1"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**settings)


def test_in_float64_all_of_it_is_float64():
    network, images = perturbed(SIGMOID, 1).double(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    estimate = network(images, times(1, 4))
    assert estimate.dtype == torch.float64
    assert not torch.equal(estimate, estimate.float().double())
