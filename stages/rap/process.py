"""The attack process's settings (paper, Alg. 1), as they are given and as integers on the lattice.

>>> process = AttackConfig(steps=10).process(ThreatModel(norm="Linf", radius=0.2))
>>> process.step, process.bound, process.denominator
(255, 1020, 5100)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int16, Int64
from torch import Tensor

from stages import randomness
from stages.numerics import Arithmetic
from stages.rap.losses import LossName
from stages.rap.threat import Lattice, Norm, ThreatModel, default_denominator
from stages.settings import check_settings

Start = Literal["uniform", "gaussian", "none"]
Conditioning = Literal["deployed", "state", "random"]


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Arithmetic):
    """The attack process that makes the training data (Alg. 1)."""

    steps: int = 10
    """T, the length of the attack process."""
    step_size: float | None = None
    """Step size (lambda in Alg. 1) in pixels of [0, 1]; unset: searched, or 2.5 radius / T."""
    start: Start = "uniform"
    """Distribution of the start's noise: uniform as in Alg. 1 (L2: uniform in the ball), gaussian as in
    Section 3.1, or none."""
    noise_scale: float | None = None
    """Scale of the start's noise in pixels of [0, 1]: the bound c of U(-c, c), or sigma. Unset: searched, or
    the radius."""
    loss: LossName = "cross-entropy"
    """Loss that the attack raises; dlr is AutoAttack's margin loss."""
    conditioning: Conditioning = "deployed"
    """The t that the adapter is given while attacked: the deployed T, the state's own t, or a random one."""
    projection: bool = True
    """Project to the ball (Alg. 1 only says Clamp); without it only to [0, 1]."""
    denominator: int | None = None
    """Grid on which the attack runs; unset: 5100 for Linf, 1020 for L2."""
    batch: int = 256
    """Images attacked together. It decides the order of floating-point sums, so it is part of the result."""

    def __post_init__(self) -> None:
        check_settings(self, "attack")
        self.check_threads("attack")
        if self.steps < 1:
            raise ValueError(f"attack.steps (T) is {self.steps}; an attack process needs at least 1 step")
        if self.batch < 1:
            raise ValueError(f"attack.batch is {self.batch}; it must be at least 1")
        for name in ("step_size", "noise_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"attack.{name} is {value:g}; it must be greater than 0")
        if self.start == "none" and self.noise_scale is not None:
            raise ValueError(
                f"attack.noise_scale is {self.noise_scale:g}, but with attack.start none there is no noise: leave one "
                "of them out"
            )

    def process(self, threat: ThreatModel) -> "AttackProcess":
        """This attack against a threat model, with every length on the lattice.

        Raises ValueError when a length does not fit the lattice, or the step is larger than the ball.
        """
        usual = default_denominator(threat.norm)  # refuses a norm in which nothing is trained
        denominator = usual if self.denominator is None else self.denominator
        lattice = Lattice(denominator)
        bound = lattice.level(threat.radius, "threat.radius")
        step_size = self.step_size or lattice.snap(min(2.5 * threat.radius / self.steps, threat.radius))
        step = lattice.level(step_size, "attack.step_size")
        if step > bound:
            raise ValueError(
                f"attack.step_size is {step_size:g}, larger than the ball (threat.radius {threat.radius:g}): "
                f"choose at most the radius; 2.5 radius / T = {2.5 * threat.radius / self.steps:g} is usual"
            )
        noise = 0
        if self.start != "none":
            scale = self.noise_scale or threat.radius
            noise = lattice.level(scale, "attack.noise_scale")
            if noise > bound:
                raise ValueError(
                    f"attack.noise_scale is {scale:g}, larger than the ball (threat.radius {threat.radius:g}); "
                    "choose at most the radius"
                )
        return AttackProcess(
            norm=threat.norm,
            denominator=denominator,
            bound=bound,
            project=self.projection,
            steps=self.steps,
            step=step,
            start=self.start,
            noise=noise,
            loss=self.loss,
            conditioning=self.conditioning,
            batch=self.batch,
            precision=self.precision,
            threads=self.threads,
            deterministic=self.deterministic,
            compiled=self.compiled,
        )


@dataclass(frozen=True, kw_only=True)
class AttackProcess(Arithmetic):
    """An attack with every length in whole levels of the lattice: what a shard's content depends on."""

    norm: Norm
    denominator: int
    bound: int
    project: bool
    steps: int
    step: int
    start: Start
    noise: int
    loss: LossName
    conditioning: Conditioning
    batch: int

    @property
    def lattice(self) -> Lattice:
        return Lattice(self.denominator)

    def times(
        self, steps: int, taken: Int64[Tensor, " batch"] | None = None, seed: int = 0
    ) -> Int64[Tensor, "step batch"]:
        """The t that the adapter is given at each of ``steps`` steps, by the conditioning.

        ``taken`` are the steps that each trajectory has had; unset: none, the same t for all images. ``seed`` is that
        of random conditioning.
        """
        taken = torch.zeros(1, dtype=torch.int64) if taken is None else taken
        return torch.stack([self._time(taken + step, seed + step) for step in range(steps)])

    def _time(self, taken: Int64[Tensor, " batch"], seed: int) -> Int64[Tensor, " batch"]:
        if self.conditioning == "state":
            return taken
        if self.conditioning == "deployed":
            return torch.full_like(taken, self.steps)
        drawn = randomness.integers(1, self.steps + 1, len(taken), "conditioning", seed)
        return torch.from_numpy(drawn).to(taken.device)

    def limits(self, clean: Int16[Tensor, "*shape"]) -> tuple[Int16[Tensor, "*shape"], Int16[Tensor, "*shape"]]:
        """Lowest and highest level of each pixel: [0, 1], and for Linf the ball around the clean image."""
        if self.norm == "Linf" and self.project:
            return (clean - self.bound).clamp_(min=0), (clean + self.bound).clamp_(max=self.denominator)
        return torch.zeros_like(clean), torch.full_like(clean, self.denominator)
