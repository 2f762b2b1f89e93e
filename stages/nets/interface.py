"""Anybody's network as a map from images in [0, 1] to logits: normalisation before it, and the logits of its answer.

>>> import torch
>>> class Both(nn.Module):
...     def forward(self, images):
...         return {"logits": images.flatten(1), "features": images}
>>> network = Interface(Both(), output="logits")
>>> network(torch.zeros(2, 1, 2, 2)).shape
torch.Size([2, 4])
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from stages.nets.normalisation import Normalise

LOGITS = "logits"  # the name that Hugging Face's models give them


class Interface(nn.Module):
    """A network that is given (images - mean) / std, in pixels of [0, 1], and of whose answer ``output`` is taken.

    ``output`` is a key of a dict, the name of an attribute, or the place in a tuple; "" where the answer is the logits.
    """

    def __init__(
        self, network: nn.Module, *, mean: tuple[float, ...] = (), std: tuple[float, ...] = (), output: str = ""
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std) if mean or std else nn.Identity()
        self.network = network
        self.output = output

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        answer = self.network(self.normalise(images))
        return part_of(answer, self.output) if self.output else answer


def through_interface(
    network: nn.Module, *, mean: tuple[float, ...] = (), std: tuple[float, ...] = (), output: str = ""
) -> nn.Module:
    """The network behind an `Interface`, or itself where that would do nothing."""
    return Interface(network, mean=mean, std=std, output=output) if mean or std or output else network


def part_of(answer: object, key: str) -> Tensor:
    """One part of an answer. Raises KeyError, IndexError, AttributeError or ValueError where it has none."""
    if isinstance(answer, Mapping):
        return answer[key]
    return answer[int(key)] if isinstance(answer, tuple | list) else getattr(answer, key)


def logits_key(answer: object, classes: int | None) -> str | None:
    """Which part of an answer that is no tensor are its logits; None where none is, or several could be.

    Those that are called "logits"; else the only part that is a matrix, with a column for each of the ``classes`` where
    their number is known.
    """
    if isinstance(answer, Mapping):
        parts = dict(answer)
    elif isinstance(answer, tuple | list):
        parts = {str(place): part for place, part in enumerate(answer)}
    else:
        parts = dict(getattr(answer, "__dict__", {}))
        if hasattr(answer, LOGITS):
            parts[LOGITS] = getattr(answer, LOGITS)
    if isinstance(parts.get(LOGITS), Tensor):
        return LOGITS
    fitting = [key for key, part in parts.items() if _could_be_logits(part, classes)]
    return fitting[0] if len(fitting) == 1 else None


def _could_be_logits(part: object, classes: int | None) -> bool:
    return isinstance(part, Tensor) and part.ndim == 2 and classes in (None, part.shape[1])
