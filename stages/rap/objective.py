"""The objective (paper, Alg. 3, line 6): reconstruct the clean image, and classify what was restored.

>>> paper = ObjectiveConfig(reconstruction=1.0, cross_entropy=1.0, kl=0.0)
>>> paper.weights
{'cross_entropy': 1.0, 'reconstruction': 1.0, 'kl': 0.0, 'consistency': 0.0}
>>> ObjectiveConfig(consistency=4.0, consistency_ramp=0.5).at(0.25).consistency
2.0
"""

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from stages.settings import check_settings


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the terms of Alg. 3; all terms are means over batch (and pixels)."""

    reconstruction: float = 1.0
    """Weight of the distance between restored and clean image (the paper: 1)."""
    cross_entropy: float = 1.0
    """Weight of the cross-entropy on the restored image (the paper: 1)."""
    kl: float = 0.0
    """Weight of KL(clean prediction || adversarial prediction), TRADES' alternative to the paper's terms; the
    clean prediction is the robust classifier's own, and the gradient flows through both."""
    consistency: float = 0.0
    """Weight of the squared distance between the logits on the state that is trained on and on the one in which its
    visit began, as in FGSM-PGI (Jia et al. 2022); the gradient flows through both."""
    consistency_ramp: float = 0.0
    """Share of the updates over which that weight rises evenly from 0; 0: all of it from the first."""
    consistency_share: float = 1.0
    """Share of a batch's images that the term is computed on; the others need no second pass of the networks."""
    norm: Literal["l1", "l2"] = "l1"
    """Distance of the reconstruction: mean absolute (App. D) or mean squared error (Eq. 8)."""

    def __post_init__(self) -> None:
        check_settings(self, "objective")
        for name, weight in self.weights.items():
            if not weight >= 0:
                raise ValueError(f"objective.{name} is {weight:g}; weights must be at least 0")
        if not 0 <= self.consistency_ramp <= 1:
            raise ValueError(f"objective.consistency_ramp is {self.consistency_ramp:g}; it is a share in [0, 1]")
        if not 0 < self.consistency_share <= 1:
            raise ValueError(
                f"objective.consistency_share is {self.consistency_share:g}; it is a share in (0, 1] (for none of the "
                "term, set objective.consistency to 0)"
            )
        if self.cross_entropy == self.kl == self.reconstruction == 0:
            raise ValueError("every weight of the objective is 0, so nothing would be learnt: set one of them")

    @property
    def needs_starts(self) -> bool:
        """Whether the states in which visits began enter the loss."""
        return self.consistency > 0

    def at(self, done: float) -> "ObjectiveConfig":
        """The objective of the update that completes a share ``done`` of all updates."""
        if done >= self.consistency_ramp:
            return self
        return replace(self, consistency=self.consistency * done / self.consistency_ramp, consistency_ramp=0.0)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        return {
            "cross_entropy": self.cross_entropy,
            "reconstruction": self.reconstruction,
            "kl": self.kl,
            "consistency": self.consistency,
        }


def objective(
    config: ObjectiveConfig,
    *,
    restored: Float[Tensor, "batch channel height width"],
    clean: Float[Tensor, "batch channel height width"],
    logits: Float[Tensor, "batch class"],
    labels: Int64[Tensor, " batch"],
    clean_logits: Float[Tensor, "batch class"] | None = None,
    start_logits: Float[Tensor, "some class"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The loss of Alg. 3 on restored states, and its terms without weights.

    ``clean_logits``, the robust classifier's on the clean images, are needed where ``config.kl`` is not 0, and
    ``start_logits``, those on the states in which the visits of the first images began, where ``config.consistency`` is
    not.
    """
    terms = {"cross_entropy": functional.cross_entropy(logits, labels)}
    if config.reconstruction:
        distance = functional.l1_loss if config.norm == "l1" else functional.mse_loss
        terms["reconstruction"] = distance(restored, clean)
    if config.kl:
        if clean_logits is None:
            raise ValueError("the objective has a KL term and needs clean_logits, the logits of the clean images")
        terms["kl"] = functional.kl_div(
            functional.log_softmax(logits, 1),
            functional.log_softmax(clean_logits, 1),
            reduction="batchmean",
            log_target=True,
        )
    if config.consistency:
        if start_logits is None:
            raise ValueError("the objective has a consistency term and needs start_logits, those of the visits' starts")
        terms["consistency"] = functional.mse_loss(logits[: len(start_logits)], start_logits)
    total = sum((config.weights[name] * term for name, term in terms.items()), logits.new_zeros(()))
    return total, {name: term.detach() for name, term in terms.items()}
