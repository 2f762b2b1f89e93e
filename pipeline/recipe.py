"""The recipe: all that determines a result, as frozen dataclasses."""

from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.search_settings import SearchConfig
from stages.data.datasets import DataConfig
from stages.evaluation.autoattack import AutoAttackConfig
from stages.evaluation.checks.examined import CheckSize
from stages.evaluation.judge import JudgeConfig
from stages.models import ModelConfig
from stages.nets.architectures import ClassifierConfig
from stages.nets.unet import UNET_SIZES, UNetConfig
from stages.rap.process import AttackConfig
from stages.rap.threat import ThreatModel
from stages.search.halving import Rungs
from stages.settings import check_settings
from stages.training.adapter import TrainConfig
from stages.training.schedule import ScheduleConfig
from stages.training.setup import LoopConfig

AdapterSize = Literal["flat", "flat-half", "tiny", "tiny-half", "small", "4M", "9M", "11M", "36M"]


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The adapter, a time-conditioned U-Net, and how it meets the classifier."""

    size: AdapterSize = "tiny"
    """Size of the U-Net; flat has 26k parameters and full resolution alone, tiny 0.1M and half of it too; flat-half,
    tiny-half, small and 11M work on patches of 2x2 pixels; 9M and 36M are those of DDPM at half and full width."""
    output: Literal["residual", "sigmoid"] = "sigmoid"
    """residual: the image plus a correction that starts at zero; sigmoid: an image of its own."""
    straight_through: bool = True
    """Let gradients pass the clamp behind the adapter, for training and for every attack; the model's answers are
    the same."""

    def __post_init__(self) -> None:
        check_settings(self, "adapter")

    def unet(self) -> UNetConfig:
        return replace(UNET_SIZES[self.size], output=self.output)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(AutoAttackConfig):
    """The final evaluation on test images: AutoAttack, and PGD on more of them."""

    pgd_images: int = 1000
    """Test images under PGD, all of them where there are fewer."""
    pgd_steps: int = 40
    """Steps of that PGD (cross-entropy, one random start)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pgd_images", "pgd_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ChecksConfig:
    """The checks on the final model (stages/evaluation/README.md)."""

    size: CheckSize = field(default_factory=CheckSize)
    budget: float = 0.1
    """Share of the real training's rounds that each training of checks 17 and 18 gets; 0: neither is made."""
    ablation_images: int = 256
    """Test images on which those trainings are compared, under PGD-20."""
    others: int = 1
    """Further classifiers, trained from other seeds, for checks 8 and 20."""

    def __post_init__(self) -> None:
        check_settings(self, "checks")
        if not 0 <= self.budget <= 1:
            raise ValueError(f"checks.budget is {self.budget:g}; it is a share of the real training's, in [0, 1]")
        for name, least in (("ablation_images", 1), ("others", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"checks.{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a result. Worker counts, paths and devices are not part of it."""

    data: DataConfig = field(default_factory=DataConfig)
    threat: ThreatModel = field(default_factory=ThreatModel)
    model: ModelConfig = field(default_factory=ModelConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    augment: bool = False
    """Random crops and flips of training images, before the attack."""
    checkpoint_rounds: int = 10
    """Rounds from one checkpoint to the next: what a killed train worker repeats at most."""
    seed: int = 0
    """Seed of the run, 0 or above."""

    def __post_init__(self) -> None:
        for name, least in (("checkpoint_rounds", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    def loop(self) -> LoopConfig:
        """The loop of this recipe. Raises ValueError when the attack does not fit the threat model."""
        return LoopConfig(
            threat=self.threat,
            attack=self.attack.process(self.threat),
            adapter=self.adapter.unet(),
            schedule=self.schedule,
            train=self.train,
            judge=self.judge,
            augment=self.augment,
            straight_through=self.adapter.straight_through,
            checkpoint_rounds=self.checkpoint_rounds,
            seed=self.seed,
        )

    @property
    def rungs(self) -> Rungs:
        """The rounds after which the search compares its trials. Raises ValueError where there are none."""
        rounds = self.search.rounds or max(1, self.schedule.rounds // 2)
        first = self.search.first_rounds or max(1, rounds // 4)
        if first > rounds:
            raise ValueError(
                f"search.first_rounds is {first}, more than the {rounds} rounds of the longest trials (search.rounds, "
                "or half of schedule.rounds)"
            )
        return Rungs(first=first, rounds=rounds, factor=self.search.factor)

    def trial_loop(self) -> LoopConfig:
        """The loop of a trial with this recipe: shorter, judged wherever trials are compared.

        Checkpoints are as far apart as in a run at most, and one is at every comparison.
        """
        rungs = self.rungs
        apart = max(n for n in range(1, rungs.first + 1) if n <= self.checkpoint_rounds and not rungs.first % n)
        return replace(
            self.loop(),
            schedule=replace(self.schedule, rounds=rungs.rounds),
            judge=JudgeConfig(images=self.search.images, every=rungs.first),
            checkpoint_rounds=apart,
        )
