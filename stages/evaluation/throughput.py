"""How many images a model answers in a second (the paper's Section 4.5)."""

import statistics
import time

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stages.evaluation.accuracy import device_of, evaluating


def images_per_second(
    model: nn.Module, images: Float[Tensor, "image channel height width"], *, seconds: float = 1.0
) -> float:
    """The median rate over calls with these images for so many seconds, at least three, after two that do not count."""
    device = device_of(model)
    batch, rates = images.to(device), []
    with torch.no_grad(), evaluating(model):
        for _ in range(2):
            model(batch)
        ends = time.perf_counter() + seconds
        while len(rates) < 3 or time.perf_counter() < ends:
            began = time.perf_counter()
            model(batch).sum().item()  # reading a number waits for a GPU to end
            rates.append(len(images) / (time.perf_counter() - began))
    return statistics.median(rates)
