"""The classical attacks of the paper's Table 3, by foolbox (Rauber et al. 2020): weaker than AutoAttack, and cheap.

>>> ClassicalConfig(method="bim").name
'BIM-20, step 2/255 as in the paper'
>>> ClassicalConfig(method="bim", step_size=None).name
'BIM-20 to the edge'
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from stages.evaluation.attacks import Attack
from stages.evaluation.finite import FiniteGradients
from stages.rap.threat import ThreatModel
from stages.settings import check_settings

Method = Literal["gaussian-noise", "deepfool", "bim", "fgsm"]
PAPER_STEP = 2 / 255  # Section 4.3; 20 steps of it cover 0.157, half of the radius that the attack is allowed
EDGE = 2.5  # times the radius, divided among the steps: enough to cross the ball and turn (Madry et al. 2018)


@dataclass(frozen=True, kw_only=True)
class ClassicalConfig:
    """One classical attack, with the paper's numbers (Section 4.3) where it gives them."""

    method: Method = "bim"
    """gaussian-noise (L2 only): draws of noise, each as long as the radius after clipping, and the image is broken if
    one of them fools the model; deepfool (Moosavi-Dezfooli et al. 2016), cut off at the radius; bim (Kurakin et al.
    2018): gradient steps from the image; fgsm (Goodfellow et al. 2014): one step as long as the radius."""
    steps: int | None = None
    """Iterations; unset: 50 of deepfool and 20 of bim, as in the paper. The others have none."""
    step_size: float | None = PAPER_STEP
    """Step of bim in pixels of [0, 1]; None: 2.5 radius / steps, which reaches the edge of the ball."""
    overshoot: float = 0.02
    """How far deepfool steps over the boundary, as a share of the way."""
    draws: int = 100
    """Draws of gaussian-noise; the paper does not say how many."""
    batch: int = 256
    """Images attacked together. It decides the random numbers, so it is part of the result."""
    seed: int = 0
    """Seed of gaussian-noise."""

    def __post_init__(self) -> None:
        check_settings(self, "classical")
        if self.steps is not None and self.method not in ("deepfool", "bim"):
            raise ValueError(f"classical.steps is {self.steps}, but {self.method} has no steps: leave it unset")
        for name in ("steps", "draws", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"classical.{name} is {value}; it must be at least 1")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"classical.step_size is {self.step_size:g}; it must be greater than 0")
        if not self.overshoot >= 0:
            raise ValueError(f"classical.overshoot is {self.overshoot:g}; it must be at least 0")

    @property
    def iterations(self) -> int:
        """Steps that are taken."""
        return self.steps or {"deepfool": 50, "bim": 20}.get(self.method, 1)

    @property
    def name(self) -> str:
        """The attack in a table."""
        if self.method == "gaussian-noise":
            return f"Gaussian noise, {self.draws} draws"
        if self.method == "fgsm":
            return "FGSM"
        if self.method == "deepfool":
            return f"DeepFool-{self.iterations}"
        if self.step_size == PAPER_STEP:
            return f"BIM-{self.iterations}, step 2/255 as in the paper"
        return f"BIM-{self.iterations} " + ("to the edge" if self.step_size is None else f"step {self.step_size:.4g}")


def classical_attack(config: ClassicalConfig) -> Attack:
    """The attack as a function for `stages.evaluation.attacks.run_attack`, which verifies what it returns.

    The function raises ValueError for a norm in which the attack does not exist: L1, and noise in any but L2.
    """

    def attack(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        method, foolbox = _method(config, threat), _foolbox()
        wrapped = foolbox.PyTorchModel(FiniteGradients(model).eval(), bounds=(0, 1), device=images.device)
        with torch.random.fork_rng([images.device] if images.is_cuda else []), torch.enable_grad():
            torch.manual_seed(config.seed)
            _, clipped, _ = method(wrapped, images, foolbox.Misclassification(labels), epsilons=threat.radius)
        return clipped.clamp(0, 1)  # foolbox cuts to the ball last, whose sums may leave [0, 1] by a rounding

    return attack


@cache
def _foolbox() -> ModuleType:
    """The library, imported where it is needed: it takes a second, and warns of SciPy's old names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
    return foolbox


def _method(config: ClassicalConfig, threat: ThreatModel) -> Callable[..., tuple]:
    attacks = _foolbox().attacks
    if threat.norm not in ("Linf", "L2"):
        raise ValueError(
            f"{config.method} is there for Linf and L2, not {threat.norm}: use AutoAttack in {threat.norm}"
        )
    if config.method == "gaussian-noise":
        if threat.norm != "L2":
            raise ValueError("Gaussian noise of a fixed length is there for L2 only, as in the paper's Table 3")
        return attacks.L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack(repeats=config.draws)
    if config.method == "deepfool":
        deepfool = attacks.LinfDeepFoolAttack if threat.norm == "Linf" else attacks.L2DeepFoolAttack
        return deepfool(steps=config.iterations, overshoot=config.overshoot)
    if config.method == "fgsm":
        return attacks.LinfFastGradientAttack() if threat.norm == "Linf" else attacks.L2FastGradientAttack()
    bim = attacks.LinfBasicIterativeAttack if threat.norm == "Linf" else attacks.L2BasicIterativeAttack
    step = config.step_size or EDGE * threat.radius / config.iterations
    return bim(abs_stepsize=step, steps=config.iterations)
