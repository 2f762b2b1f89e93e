"""How many images models answer in a second (the paper's Section 4.5)."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stages.evaluation.accuracy import device_of, evaluating


def images_per_second(
    models: Mapping[str, nn.Module],
    images: Float[Tensor, "image channel height width"],
    *,
    rounds: int = 5,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """The median rate of each model over calls with these images, after one that does not count.

    The models are called in turn, so that a slow moment of the machine meets all of them. ``progress`` gets a line a
    turn.
    """
    rates: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(1 + rounds):
        for name, model in models.items():
            rates[name].append(_rate(model, images))
        said = ", ".join(f"{found[-1]:.3g} {name}" for name, found in rates.items())
        progress(f"turn {turn} of {rounds}, images/s: {said}" if turn else f"warmed up, images/s: {said}")
    return {name: statistics.median(found[1:]) for name, found in rates.items()}


def _rate(model: nn.Module, images: Tensor) -> float:
    batch = images.to(device_of(model))
    with torch.no_grad(), evaluating(model):
        began = time.perf_counter()
        model(batch).sum().item()  # reading a number waits for a GPU to end
        return len(images) / (time.perf_counter() - began)
