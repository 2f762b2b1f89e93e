"""What several train workers have to agree on; with one, nothing happens."""

import torch
from torch import Tensor, distributed
from torch.nn import Parameter


def workers() -> tuple[int, int]:
    """This worker's rank, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def average_gradients(parameters: list[Parameter]) -> None:
    """Replace every gradient by its mean over the workers, in one message."""
    if workers()[1] == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= workers()[1]
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.reshape(gradient.shape))


def any_worker(flag: bool, device: str = "cpu") -> bool:
    """Whether the flag is set on any worker: all of them get the same answer."""
    if workers()[1] == 1:
        return flag
    votes: Tensor = torch.tensor([float(flag)], device=device)
    distributed.all_reduce(votes)
    return bool(votes.item() > 0)
