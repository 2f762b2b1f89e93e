"""A loop with its inputs: what determines the result, and where it lies."""

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.data.splits import Split
from stages.evaluation.judge import JudgeConfig
from stages.fingerprint import fingerprint
from stages.nets.copies import copied
from stages.nets.faster import compile_networks, faster_adapter, faster_classifier
from stages.nets.unet import UNet, UNetConfig
from stages.numerics import Arithmetic
from stages.randomness import key_seed
from stages.rap.process import AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.storage import Storage
from stages.training.adapter import Learner, TrainConfig
from stages.training.journal import Journal
from stages.training.schedule import Schedule, ScheduleConfig
from stages.training.units import Units
from stages.training.versions import Versions

if TYPE_CHECKING:
    import stages.trajectories.ledger


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """All of the recipe that determines the loop's result, beside data, classifier and first weights."""

    threat: ThreatModel
    attack: AttackProcess
    adapter: UNetConfig
    schedule: ScheduleConfig
    train: TrainConfig
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    augment: bool = False
    straight_through: bool = True
    checkpoint_rounds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        longest = self.schedule.life * self.schedule.visit_steps
        if longest > self.attack.steps and "state" in (self.attack.conditioning, self.train.conditioning):
            raise ValueError(
                f"conditioning is state, but trajectories have up to {longest} steps (schedule.life x "
                f"schedule.visit_steps), more than attack.steps (T = {self.attack.steps}), up to which the adapter is "
                "told t: use conditioning deployed, or a shorter life"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """A loop with its inputs, ready to be sent to any process: the same everywhere."""

    config: LoopConfig
    train: Split
    holdout: Split
    classifier: nn.Module
    classifier_fingerprint: str
    root: Storage
    name: str
    """Where the run lies below the root."""
    initial: dict[str, Tensor] | None = None
    device: str = "cpu"
    repeats: bool = True
    """Whether the device repeats a computation to the bit, as CPUs do: then what a resumed run publishes again must be
    what it published before, else that is set aside."""
    keep_versions: bool = True
    """Keep the weights of every version; else a checkpoint holds those that the next rounds attack."""

    def __getstate__(self) -> dict[str, object]:
        """The fields alone: a schedule that was begun belongs to its process (another's arrays are read-only there)."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def schedule(self) -> Schedule:
        return Schedule(self.config.schedule, images=len(self.train), seed=self.config.seed)

    @cached_property
    def units(self) -> Units:
        return Units(self.schedule, self.config.attack, self.train, model=self.model, augment=self.config.augment)

    @property
    def model(self) -> str:
        """The fingerprint of all of the robust classifier but the weights that are trained."""
        config = self.config
        return fingerprint(
            "robust classifier",
            1,
            adapter=None if config.train.what == "classifier" else config.adapter,
            classifier=self.classifier_fingerprint,
            straight_through=config.straight_through,
            trained=config.train.what,
        )

    @property
    def run(self) -> Storage:
        """The objects of this run."""
        return self.root.below(self.name)

    @property
    def label(self) -> str:
        """What the ledger calls the run."""
        return self.name.removeprefix("runs/")

    @property
    def ledger(self) -> "stages.trajectories.ledger.Ledger":
        from stages.trajectories.ledger import Ledger  # imports PyArrow, which workers do without

        return Ledger(self.root, self.label)

    @property
    def versions(self) -> Versions:
        return Versions(self.run)

    @property
    def journal(self) -> Journal:
        return Journal(self.run)

    @property
    def is_complete(self) -> bool:
        """Whether the last round is trained and written down."""
        rounds = self.config.schedule.rounds
        if not rounds:
            return bool(self.run.names("train/best"))
        return self.journal.checkpointed == rounds

    def build(self) -> RobustClassifier:
        """The robust classifier with its first weights, on the device."""
        config, adapter = self.config, None
        if config.train.what != "classifier":
            with torch.random.fork_rng([]):
                torch.manual_seed(key_seed(config.seed, "adapter"))
                adapter = UNet(config.adapter, self.train.images.shape[1])
        robust = RobustClassifier(
            adapter,
            copied(self.classifier, "the classifier"),
            steps=config.attack.steps,
            threat=config.threat,
            straight_through=config.straight_through,
        )
        return robust.eval().requires_grad_(False).to(self.device)

    def build_faster(self, arithmetic: Arithmetic) -> RobustClassifier:
        """The same for training or generation, whose last bits may differ from what is judged and shipped.

        Raises ValueError where networks are to be compiled and cannot be.
        """
        robust = self.build()
        images = torch.from_numpy(self.train.images[:8]).to(self.device).float() / 255
        frozen = self.config.train.what == "adapter"
        robust.classifier = faster_classifier(robust.classifier, images, frozen=frozen)
        if robust.adapter is not None:
            faster_adapter(robust.adapter)
        if arithmetic.compiled:
            compile_networks([each for each in (robust.adapter, robust.classifier) if each is not None], self.device)
        return robust

    def learner(self) -> Learner:
        """A learner at the first update."""
        config, updates = self.config, self.schedule.updates
        learner = Learner(self.build_faster(config.train), config.train, total_updates=updates, seed=config.seed)
        if self.initial is not None:
            learner.load_weights(self.initial)
        return learner


def load_trained(robust: RobustClassifier, weights: dict[str, Tensor]) -> RobustClassifier:
    """The robust classifier with the trained weights of a version; what is frozen stays as it is."""
    unknown = robust.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise ValueError(
            f"the weights do not belong to this robust classifier: it has no {unknown[0]!r} "
            f"({len(unknown)} such names); load them into the recipe that they were trained with"
        )
    return robust
