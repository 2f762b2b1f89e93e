"""Models with the same answers and another backward pass, to look behind vanishing gradients.

Backward pass differentiable approximation (Athalye et al. 2018, Section 4.1). They work on any module, since they
intercept PyTorch's own functions while the module runs; its code and weights stay as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from stages.rap.robust import RobustClassifier

SLOPE = 0.1  # of the leaky ReLU's negative side: enough to lead out, and little against the true gradient

STEPS: frozenset[Callable[..., Any]] = frozenset(
    (
        *(torch.clamp, Tensor.clamp, torch.clip, Tensor.clip),
        *(functional.hardtanh, functional.relu6, functional.hardsigmoid),
        *(torch.round, Tensor.round, torch.floor, Tensor.floor, torch.ceil, Tensor.ceil, torch.trunc, Tensor.trunc),
        *(torch.sign, Tensor.sign, torch.sgn, Tensor.sgn),
    )
)
RELUS: frozenset[Callable[..., Any]] = frozenset([functional.relu, torch.relu, Tensor.relu])


class OtherBackward(TorchFunctionMode):
    """While it is on, some functions have their own values and the gradient of a stand-in."""

    def __init__(self, functions: frozenset[Callable[..., Any]], stand_in: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.functions, self.stand_in = functions, stand_in
        self.met = 0
        """How often such a function was met."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func not in self.functions:
            return func(*args, **kwargs)
        self.met += 1
        values = args[0] if args else kwargs["input"]
        kept = values.clone()  # as the function may work in place
        hard = func(kept, *args[1:], **{name: value for name, value in kwargs.items() if name != "input"})
        soft = self.stand_in(values)
        return hard.detach() + (soft - soft.detach())


class StraightThrough(nn.Module):
    """The model with the identity as the backward pass of clamps, rounding and signs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        with OtherBackward(STEPS, lambda values: values):
            return self.model(images)


class LeakyBackward(nn.Module):
    """The model with a leaky ReLU as the backward pass of each ReLU."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        with OtherBackward(RELUS, lambda values: functional.leaky_relu(values, SLOPE)):
            return self.model(images)


class Rescaled(nn.Module):
    """The model with each image's logits divided by their standard deviation, so that no softmax saturates."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        logits = self.model(images)
        tiny = torch.finfo(logits.dtype).tiny  # avoids 0/0 for equal logits
        return logits / logits.detach().std(1, keepdim=True).clamp(min=tiny)


class OtherClamp(nn.Module):
    """A model with the robust classifiers in it passing gradients through their clamps where they did not, or not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        with straight_through(self.model, lambda before: not before):
            return self.model(images)


@contextmanager
def straight_through(model: nn.Module, change: Callable[[bool], bool]) -> Iterator[None]:
    """Inside, whether each robust classifier in the model passes gradients through its clamp is changed."""
    found = [(part, part.straight_through) for part in model.modules() if isinstance(part, RobustClassifier)]
    try:
        for part, before in found:
            part.straight_through = change(before)
        yield
    finally:
        for part, before in found:
            part.straight_through = before


def surrogates_of(model: nn.Module, images: Float[Tensor, "image channel height width"]) -> dict[str, nn.Module]:
    """The surrogates that differ from the model in their backward pass only, by name; ``images`` are a few to try."""
    tried: dict[str, nn.Module] = {"rescaled logits": Rescaled(model)}
    if any(isinstance(part, RobustClassifier) and part.adapter is not None for part in model.modules()):
        tried["the adapter's clamp the other way"] = OtherClamp(model)
    if _meets(model, images, STEPS):
        tried["straight-through clamps and rounding"] = StraightThrough(model)
    if _meets(model, images, RELUS):
        tried["leaky ReLU"] = LeakyBackward(model)
    return tried


def _meets(
    model: nn.Module, images: Float[Tensor, "image channel height width"], functions: frozenset[Callable[..., Any]]
) -> bool:
    with torch.no_grad(), OtherBackward(functions, lambda values: values) as mode:
        model(images)
    return mode.met > 0
