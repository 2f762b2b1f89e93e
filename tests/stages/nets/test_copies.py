"""A copy of whatever a user's network is made of."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as older_spectral_norm
from torch.nn.utils import weight_norm as older_weight_norm

from stages.nets.copies import CopyError, copied

IMAGES = torch.linspace(0, 1, 2 * 64).reshape(2, 1, 8, 8)
# Of the older weight_norm and of all of TorchScript, which are the user's choice.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # of torch.export's own code
]


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))


def twice(values: Tensor) -> Tensor:
    return 2 * values


class Scripted(nn.Module):
    """A function of TorchScript beside weights."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.double = network(), torch.jit.script(twice)

    def forward(self, images: Tensor) -> Any:
        return self.double(self.network(images))  # pyright: ignore[reportCallIssue]


class Remembering(nn.Module):
    """Weights that were computed from others when it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.factors = [self.network.get_submodule("2").weight.mean() + 1]  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor) -> Tensor:
        return self.factors[0] * self.network(images)


def changed(change: Callable[[nn.Sequential], object]) -> nn.Module:
    """The network after a change, once it was used with gradients."""
    model = network()
    change(model)
    model(IMAGES)
    return model.eval()


NETWORKS: dict[str, Callable[[], Any]] = {
    "plain": network,
    "pruned": lambda: changed(lambda model: prune.l1_unstructured(model[0], "weight", 0.5)),
    "older weight_norm": lambda: changed(lambda model: older_weight_norm(model[2])),
    "older spectral_norm": lambda: changed(lambda model: older_spectral_norm(model[0])),
    "spectral_norm": lambda: changed(lambda model: parametrizations.spectral_norm(model[0])),
    "computed weights": Remembering,
    "a scripted function": Scripted,
    "torch.jit.script": lambda: torch.jit.script(network()),
    "torch.fx": lambda: torch.fx.symbolic_trace(network()),
    "torch.compile": lambda: torch.compile(network(), backend="eager"),
    "torch.export": lambda: torch.export.export(network().eval(), (IMAGES,)).module(),
    "torch.jit.freeze": lambda: torch.jit.freeze(torch.jit.script(network().eval())),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_answers_as_the_network_and_shares_no_weights(name: str):
    model = NETWORKS[name]()
    expected = model(IMAGES).detach()
    copy = copied(model)
    assert torch.equal(copy(IMAGES), expected)
    with torch.no_grad():
        for value in copy.state_dict().values():
            value.zero_()
    assert torch.equal(model(IMAGES), expected)
    theirs = {value.data_ptr() for value in model.state_dict().values()}
    assert not theirs & {value.data_ptr() for value in copy.state_dict().values()}


def test_what_hooks_compute_from_weights_is_computed_from_those_of_the_copy():
    model = NETWORKS["pruned"]()
    copy = copied(model)
    with torch.no_grad():
        for weight in copy.parameters():
            weight.mul_(2)
    assert not torch.equal(copy(IMAGES), model(IMAGES))


def test_no_network_is_copied_as_none():
    assert copied(None) is None


def test_what_cannot_be_copied_is_refused_in_words():
    model = network()
    vars(model)["lock"] = threading.Lock()
    with pytest.raises(CopyError, match=r"the adapter cannot be copied \(TypeError: cannot pickle '_thread.lock'"):
        copied(model, "the adapter")
