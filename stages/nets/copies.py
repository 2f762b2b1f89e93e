"""A copy of anybody's network: also of those that `copy.deepcopy` refuses.

>>> network = nn.Linear(2, 2)
>>> network.squared = network.weight**2  # with a history, as pruning and the older weight_norm leave it
>>> copied(network).squared.requires_grad
False
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Network = TypeVar("Network", bound=nn.Module | None)


class CopyError(ValueError):
    """A network that cannot be copied."""


def copied(network: Network, what: str = "the model") -> Network:
    """A copy that shares no weights with the network.

    A tensor that was computed from weights is copied without its history: what a forward pass computes anew it computes
    from the copy's weights, and what it does not stays as it is. Raises CopyError, which names ``what`` and the reason.
    """
    parts = network.modules() if network is not None else ()
    # TorchScript's functions have no state, and cannot be copied
    kept = {
        id(each): each for part in parts for each in vars(part).values() if isinstance(each, torch.jit.ScriptFunction)
    }
    try:
        with _WithoutHistory():
            return copy.deepcopy(network, dict(kept))
    except Exception as error:  # whatever anybody's __deepcopy__ and __reduce__ raise
        raise CopyError(
            f"{what} cannot be copied ({type(error).__name__}: {error}); make such a thing when it is first used, or "
            "leave it out in __getstate__"
        ) from error


class _WithoutHistory(TorchFunctionMode):
    """Inside, a tensor that was computed from others is copied as its values."""

    def __torch_function__(
        self,
        function: Callable,
        _types: object,
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> object:
        if function is Tensor.__deepcopy__ and not arguments[0].is_leaf:
            tensor, memo = arguments
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return function(*arguments, **(keywords or {}))
