"""BPDA and EOT (Athalye et al. 2018), the attack of the paper's Table 5: against defences that hide their gradients.

BPDA runs the purifier forward and takes it for the identity backward; EOT averages over repeated forward passes, for
models that draw random numbers. Both are changes of the model that is attacked, so the attack itself is PGD.

>>> BPDAConfig().name
'BPDA+EOT-50 (identity backward, 15 samples)'
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from stages.evaluation.attacks import Attack
from stages.evaluation.pgd import PGDConfig, pgd
from stages.rap.threat import ThreatModel
from stages.settings import check_settings


@runtime_checkable
class Purifier(Protocol):
    """A model in two parts, such as the robust classifier: what restores the image, and what classifies it."""

    def purify(self, images: Tensor) -> Tensor: ...

    def classify(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class BPDAConfig:
    """PGD through a surrogate backward pass, with the settings of Hill et al. 2020 and Nie et al. 2022, which the paper
    takes over."""

    backward: Literal["identity", "full"] = "identity"
    """identity: BPDA, the purifier's backward pass is the identity; full: the model's own gradient."""
    steps: int = 50
    """Gradient steps."""
    step_size: float | None = None
    """Step in pixels of [0, 1]; unset: a quarter of the radius, which is 2/255 at 8/255."""
    samples: int = 15
    """Forward passes whose logits are averaged. A deterministic model gives the same 15 times: 1 is the same attack."""
    random_start: bool = False
    """Start in the ball instead of at the image."""
    batch: int = 128
    """Images attacked together."""
    seed: int = 0
    """Seed of the start, and of the numbers that the model draws."""

    def __post_init__(self) -> None:
        check_settings(self, "bpda")
        for name in ("steps", "samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"bpda.{name} is {getattr(self, name)}; it must be at least 1")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"bpda.step_size is {self.step_size:g}; it must be greater than 0")

    @property
    def name(self) -> str:
        """The attack in a table."""
        kind = "BPDA+EOT" if self.backward == "identity" else "PGD+EOT"
        return f"{kind}-{self.steps} ({self.backward} backward, {self.samples} samples)"


class Surrogate(nn.Module):
    """The model as BPDA and EOT see it: the mean logits of ``samples`` forward passes, with another backward pass."""

    def __init__(self, model: nn.Module, *, backward: str, samples: int) -> None:
        super().__init__()
        self.model, self.backward_pass, self.samples = model, backward, samples

    def forward(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image class"]:
        return torch.stack([self._once(images) for _ in range(self.samples)]).mean(0)

    def _once(self, images: Tensor) -> Tensor:
        if self.backward_pass == "full":
            return self.model(images)
        assert isinstance(self.model, Purifier)
        with torch.no_grad():
            restored = self.model.purify(images)
        # The restored image in its value, the attacked one in its gradient; x + 0 is exact.
        return self.model.classify(restored + (images - images.detach()))


def bpda_attack(config: BPDAConfig, rows: Int64[np.ndarray, " image"]) -> Attack:
    """The attack as a function for `run_attack`; ``rows``, those of the images, key the random starts.

    The function raises ValueError for BPDA against a model without ``purify`` and ``classify``.
    """

    def attack(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        if config.backward == "identity" and not isinstance(model, Purifier):
            raise ValueError(
                f"BPDA replaces the gradient of a purifier, but {type(model).__name__} has no purify(images) and "
                "classify(images): give it both, or attack it with backward=full"
            )
        settings = PGDConfig(
            steps=config.steps,
            step_size=config.step_size or threat.radius / 4,
            random_start=config.random_start,
            batch=config.batch,
            seed=config.seed,
        )
        surrogate = Surrogate(model, backward=config.backward, samples=config.samples)
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            torch.manual_seed(config.seed)
            return pgd(surrogate, images, labels, threat, config=settings, rows=rows)[0]

    return attack
