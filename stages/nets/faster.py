"""Networks that compute the same, to the rounding of float32, in less time.

For training and generation, where only speed counts. What is judged, evaluated and shipped stays as it came, so no
verdict and no model's name depends on anything here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from stages import numerics
from stages.nets.copies import copied

Images = Float[Tensor, "batch channel height width"]


@torch.no_grad()
@numerics.verdict()
def faster_classifier(classifier: nn.Module, images: Images, *, frozen: bool) -> nn.Module:
    """A copy of a classifier in eval mode: its weights channels last, and without BatchNorms where it is ``frozen``.

    Anybody's classifier may rely on what is changed (`view` takes no features in channels last; a convolution's output
    may have takers beside its BatchNorm), so a change stays only where some ``images``, on the classifier's device, are
    answered as before.
    """
    found, wanted = copied(classifier), classifier(images)
    folds = [partial(_fold, convolution=name, norm=norm) for name, norm in _pairs(found, images)] if frozen else []
    for change in (*folds, _channels_last):
        changed = copied(found)
        with suppress(Exception):  # whatever anybody's network may raise
            change(changed)
            if (changed(images) - wanted).abs().max() <= numerics.SAME * wanted.abs().max():
                found = changed
    return found


def faster_adapter(adapter: nn.Module) -> nn.Module:
    """The adapter itself, its weights channels last where that is faster: on GPUs whose group normalisation keeps it.

    Up to PyTorch 2.13 it turns each of its inputs back there, which costs what the convolutions gain; on CPUs these
    gain nothing.
    """
    device = next((weight.device for weight in adapter.parameters()), torch.device("cpu"))
    if device.type == "cuda" and _norm_keeps_channels_last(device):
        _channels_last(adapter)
    return adapter


def compile_networks(networks: Sequence[nn.Module], device: str) -> None:
    """Compile networks in place (their names and weights stay as they are), each at its first call.

    Raises ValueError where PyTorch can compile nothing for the device.
    """
    try:
        torch.compile(functional.silu)(torch.ones(2, device=device))
    except Exception as error:  # whatever a toolchain that is not there may raise
        what = "Triton" if device.startswith("cuda") else "a C++ compiler"
        raise ValueError(
            f"networks are to be compiled, but PyTorch cannot compile for {device} here "
            f"({type(error).__name__}: {str(error).splitlines()[0]}): install {what}, or leave out "
            "attack.compiled, train.compiled or classifier.compiled"
        ) from error
    for network in networks:
        network.compile()


def _channels_last(network: nn.Module) -> None:
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _norm_keeps_channels_last(device: torch.device) -> bool:
    probe = torch.zeros(2, 8, 2, 2, device=device).to(memory_format=torch.channels_last)
    return nn.functional.group_norm(probe, 2).is_contiguous(memory_format=torch.channels_last)


def _fold(network: nn.Module, *, convolution: str, norm: str) -> None:
    """Make a BatchNorm a part of the convolution in front of it."""
    fused = fuse_conv_bn_eval(network.get_submodule(convolution), network.get_submodule(norm))  # pyright: ignore[reportArgumentType]
    for name, module in ((convolution, fused), (norm, nn.Identity())):
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, module)


def _pairs(network: nn.Module, images: Images) -> Iterator[tuple[str, str]]:
    """The names of convolutions and of the norms that take the very tensor that they give, all of them used once."""
    given: dict[str, Tensor] = {}
    taken: dict[str, Tensor] = {}
    uses = Counter[str]()

    def note(name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            uses[name] += 1
            if isinstance(module, nn.Conv2d):
                given[name] = output
            elif module.running_mean is not None:  # else it normalises by the batch, whatever its mode
                taken[name] = inputs[0]

        return hook

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [
        part.register_forward_hook(note(name)) for name, part in network.named_modules() if isinstance(part, kinds)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    for norm, features in taken.items():
        for convolution, output in given.items():
            if output is features and uses[norm] == uses[convolution] == 1:
                yield convolution, norm
