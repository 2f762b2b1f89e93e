"""The losses that an attack raises, one value an image.

>>> logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
>>> dlr(logits, torch.tensor([0])).item()
-0.5
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

LossName = Literal["cross-entropy", "dlr", "margin", "cross-entropy+reconstruction"]
DLR_CLASSES = 3  # fewer have no third largest logit
AttackLoss = Callable[
    [
        Float[Tensor, "batch class"],
        Int64[Tensor, " batch"],
        Float[Tensor, "batch channel height width"],
        Float[Tensor, "batch channel height width"],
    ],
    Float[Tensor, " batch"],
]


def cross_entropy(logits: Float[Tensor, "batch class"], labels: Int64[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Cross-entropy of each image."""
    return functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Float[Tensor, "batch class"], labels: Int64[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """The best wrong logit minus the right one; positive when misclassified (Carlini & Wagner 2017)."""
    right = logits.gather(1, labels[:, None])
    wrong = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return wrong - right[:, 0]


def targeted_margin(
    logits: Float[Tensor, "batch class"], labels: Int64[Tensor, " batch"], targets: Int64[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """The logit of a target class minus the right one; positive only where the image is misclassified."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


def dlr(logits: Float[Tensor, "batch class"], labels: Int64[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Difference of logits ratio (Croce & Hein 2020, Eq. 6). Raises ValueError for fewer than three classes."""
    check_loss("dlr", classes=logits.shape[1])
    ordered = logits.sort(dim=1).values
    return margin(logits, labels) / (ordered[:, -1] - ordered[:, -3] + 1e-12)  # 1e-12: avoids 0/0 for equal logits


def check_loss(loss: LossName, *, classes: int) -> None:
    """Raises ValueError for a loss that does not exist on so few classes."""
    if loss == "dlr" and classes < DLR_CLASSES:
        raise ValueError(
            f"the loss dlr divides by the distance to the third largest logit, and there are {classes} classes: take "
            "margin or cross-entropy"
        )


def _on_logits(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> AttackLoss:
    return lambda logits, labels, restored, clean: loss(logits, labels)


def _with_reconstruction(logits: Tensor, labels: Tensor, restored: Tensor, clean: Tensor) -> Tensor:
    """Cross-entropy plus the mean absolute reconstruction error, the loss that Alg. 3 lowers."""
    return cross_entropy(logits, labels) + (restored - clean).abs().flatten(1).mean(1)


ATTACK_LOSSES: dict[str, AttackLoss] = {
    "cross-entropy": _on_logits(cross_entropy),
    "dlr": _on_logits(dlr),
    "margin": _on_logits(margin),
    "cross-entropy+reconstruction": _with_reconstruction,
}
