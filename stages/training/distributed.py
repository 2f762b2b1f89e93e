"""What several train workers have to agree on; with one, nothing happens."""

import torch
from torch import Tensor, distributed
from torch.nn import Parameter


def workers() -> tuple[int, int]:
    """This worker's rank, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def average(parameters: list[Parameter], figures: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace every gradient by its mean over the workers, and return the means of the figures, in one message."""
    if workers()[1] == 1:
        return figures
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([value.reshape(-1) for value in (*gradients, *figures.values())])
    distributed.all_reduce(flat)
    flat /= workers()[1]
    means = flat.split([gradient.numel() for gradient in gradients] + [1] * len(figures))
    for gradient, mean in zip(gradients, means, strict=False):
        gradient.copy_(mean.reshape(gradient.shape))
    return {name: mean[0] for name, mean in zip(figures, means[len(gradients) :], strict=True)}


def any_worker(flag: bool, device: str = "cpu") -> bool:
    """Whether the flag is set on any worker: all of them get the same answer."""
    if workers()[1] == 1:
        return flag
    votes: Tensor = torch.tensor([float(flag)], device=device)
    distributed.all_reduce(votes)
    return bool(votes.item() > 0)
