"""Whether a model has a finite gradient to the image, where an attack will ask for it."""

import math
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.autograd.graph import Node

from stages.evaluation.accuracy import device_of, to_float
from stages.evaluation.checks.counts import at_least
from stages.rap.losses import cross_entropy, margin
from stages.rap.threat import ThreatModel

SURE = 1e-3  # chance that a gradient which says nothing is taken for one that points the wrong way
PROBED = 32  # images whose gradient is looked at, as they are and at two points around each
AS_THEY_ARE = "clean images"
DIFFERENTIABLE = (
    "attacks follow it. The forward must not leave PyTorch's graph (detach, torch.no_grad, NumPy, PIL or JPEG, "
    "comparisons, argmax); of a step f that has no derivative, take a surrogate's, as BPDA does: "
    "x + (f(x) - x).detach() has the values of f and the gradient of the identity"
)


def check_gradient(model: nn.Module, images: UInt8[Tensor, "image channel height width"], threat: ThreatModel) -> None:
    """Raise ValueError, with the cause, unless the gradient by the image exists and is finite, on images and near them.

    Of the losses that attacks follow: cross-entropy and the margin. A gradient that is zero passes: the checks measure
    what it hides. The model must be `evaluating`, so that its weights have no gradient to be taken for the image's.
    """
    for where, points in _probes(to_float(images[:PROBED]), threat).items():
        leaf = points.to(device_of(model)).requires_grad_(True)
        with torch.enable_grad():
            logits = _run(model, leaf)
            if not bool(torch.isfinite(logits).all()):
                raise ValueError(f"the model returned NaN or infinity for {where}; its logits must be finite in [0, 1]")
            guess = logits.detach().argmax(1)
            gradient, culprit = _differentiate(logits, guess, leaf)
        if gradient is None:
            raise ValueError(f"the model's logits have no gradient with respect to the image, and {DIFFERENTIABLE}")
        spoilt = ~torch.isfinite(gradient)
        if bool(spoilt.any()):
            raise ValueError(
                f"the gradient of the model's loss is NaN or infinite {_place(leaf.detach(), spoilt, where)}{culprit}: "
                "attacks that follow it end in NaN. Look for a root, power, logarithm, norm or division at the end of "
                "its range in the forward, and keep its argument away from there, as (x + 1e-6).sqrt() does for "
                "x.sqrt()"
            )
        if where == AS_THEY_ARE:
            _check_direction(model, leaf.detach(), guess, gradient, threat)


def _check_direction(model: nn.Module, points: Tensor, guess: Tensor, gradient: Tensor, threat: ThreatModel) -> None:
    """Raise ValueError where the loss falls along its gradient, on more images than a gradient of any use explains.

    A tenth of the way to the edge of the ball, and of the sign alone: a surrogate's gradient has no other length.
    """
    length = gradient.flatten(1).norm(dim=1).clamp(min=1e-30)[:, None, None, None]  # of a gradient of zero: no move
    move = 0.1 * _reach(threat, points[0].numel()) * math.sqrt(points[0].numel()) * gradient / length
    ends = [(points + way * move).clamp(0, 1).requires_grad_(True) for way in (1, -1)]
    with torch.enable_grad():  # as attacks ask, which a model may answer otherwise: the contract's next question
        ahead, behind = (_losses(_run(model, each), guess).detach() for each in ends)
    falls, rises = int((ahead < behind).sum()), int((ahead > behind).sum())
    if at_least(falls, falls + rises, 0.5) < SURE:
        raise ValueError(
            f"the model's loss falls along its own gradient on {falls} of {falls + rises} images, so attacks that "
            "follow it move away from what breaks the model: its backward is not that of its forward. Look at the sign "
            "in what gives a gradient of its own, a torch.autograd.Function or a hook"
        )


def _probes(
    clean: Float[Tensor, "image channel height width"], threat: ThreatModel
) -> dict[str, Float[Tensor, "image channel height width"]]:
    """The images, and points that an attack visits: corners of a cube inside of the ball, where dark pixels become 0
    and bright ones 1, and points inside of it, off the 8-bit grid."""
    reach = _reach(threat, clean[0].numel())
    noise = 2 * torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) - 1
    return {
        AS_THEY_ARE: clean,
        "images moved inside of the ball": (clean + reach * noise).clamp(0, 1),
        "images moved to the edge of the ball": (clean + reach * noise.sign()).clamp(0, 1),
    }


def _reach(threat: ThreatModel, pixels: int) -> float:
    """How far all pixels may move at once inside of the ball."""
    return threat.radius / {"Linf": 1, "L2": math.sqrt(pixels), "L1": pixels}[threat.norm]


def _losses(logits: Tensor, guess: Tensor) -> Tensor:
    """Those that attacks follow, image by image."""
    return cross_entropy(logits, guess) + margin(logits, guess)


def _run(model: nn.Module, leaf: Tensor) -> Tensor:
    try:
        return model(leaf)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # such as NumPy's conversion, which only works where no gradient is asked for
        raise ValueError(
            f"the model raised {type(error).__name__} on images that ask for a gradient ({error}): {DIFFERENTIABLE}"
        ) from error


def _differentiate(logits: Tensor, guess: Tensor, leaf: Tensor) -> tuple[Tensor | None, str]:
    """The gradient of the losses by the images, None where they do not depend on them; and, in words, the function
    whose derivative first was not finite."""
    if not logits.requires_grad:
        return None, ""
    found: list[str] = []
    loss = _losses(logits, guess).sum()
    for node in _nodes(loss):
        node.register_hook(_watch(node.name(), found))
    try:
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a backward pass that anybody wrote, or nobody
        raise ValueError(
            f"the gradient of the model's loss cannot be computed ({type(error).__name__}: {error}), and "
            f"{DIFFERENTIABLE}"
        ) from error
    return gradient, f", first in the derivative of {found[0]}" if found else ""


def _nodes(loss: Tensor) -> Iterator[Node]:
    """Every node of the graph behind a loss, once."""
    seen, left = set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [parent for parent, _ in node.next_functions]
            yield node


def _watch(name: str, found: list[str]) -> Callable[[Sequence[Tensor | None], Sequence[Tensor | None]], None]:
    """A hook that notes a node which is given finite gradients and gives others."""

    def note(given_on: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> None:
        if not found and _finite(given) and not _finite(given_on):
            found.append(re.sub(r"Backward\d*$", "", name).lower())

    return note


def _finite(gradients: Sequence[Tensor | None]) -> bool:
    return all(gradient is None or bool(torch.isfinite(gradient).all()) for gradient in gradients)


def _place(
    points: Float[Tensor, "image channel height width"],
    spoilt: Bool[Tensor, "image channel height width"],
    where: str,
) -> str:
    """At how many images and pixels, and what these have in common."""
    images, values = int(spoilt.flatten(1).any(1).sum()), points[spoilt]
    low, high = values.min().item(), values.max().item()
    value = f"of value {low:g}" if low == high else f"of values from {low:g} to {high:g}"
    return f"for {images} of {len(points)} {where}, at {len(values)} of their pixels, {value}"
