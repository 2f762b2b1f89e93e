"""The loop: generate against one version, train to the next, judge now and then.

It is written once. `run_rounds` trains; where the shards come from is the caller's `obtain`: `run_serially`
makes them on the spot, the loop on Ray (pipeline/rounds.py) waits until its generators have. Both publish the
same bytes.
"""

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.data.splits import Split
from stages.evaluation.judge import JudgeConfig, Judgement, judge
from stages.fingerprint import fingerprint
from stages.nets.faster import faster_adapter, faster_classifier
from stages.nets.unet import UNet, UNetConfig
from stages.randomness import key_seed
from stages.rap.attack import AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.training.adapter import Learner, TrainConfig
from stages.training.distributed import any_worker, workers
from stages.training.journal import Journal, round_line
from stages.training.replay import ReplayWindow
from stages.training.schedule import Schedule, ScheduleConfig
from stages.training.units import Units
from stages.training.versions import Versions
from stages.trajectories.cache import TrajectoryCache
from stages.trajectories.generate import Unit, generate_unit
from stages.trajectories.ledger import LedgerRow

Obtain = Callable[[list[Unit]], list[LedgerRow]]


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """A loop with its inputs, ready to be sent to any process: the same everywhere."""

    config: LoopConfig
    train: Split
    holdout: Split
    classifier: nn.Module
    classifier_fingerprint: str
    root: Path
    run: Path
    initial: dict[str, Tensor] | None = None
    device: str = "cpu"
    keep_versions: bool = True
    """Keep the weights of every version; else only of those that the replay window of the last checkpoint attacks."""

    def __getstate__(self) -> dict[str, object]:
        """The fields alone: a schedule that was begun belongs to its process (another's arrays are read-only there)."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def schedule(self) -> Schedule:
        return Schedule(
            self.config.schedule, images=len(self.train), length=self.config.attack.steps, seed=self.config.seed
        )

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
    def versions(self) -> Versions:
        return Versions(self.run / "versions")

    @property
    def journal(self) -> Journal:
        return Journal(self.run)

    @property
    def is_complete(self) -> bool:
        """Whether the last version is published and all of its round is written down."""
        rounds = self.config.schedule.rounds
        if self.versions.fingerprint(rounds) is None:
            return False
        return rounds == 0 or self.journal.checkpointed == rounds

    def build(self) -> RobustClassifier:
        """The robust classifier with its first weights, on the device."""
        config, adapter = self.config, None
        if config.train.what != "classifier":
            with torch.random.fork_rng([]):
                torch.manual_seed(key_seed(config.seed, "adapter"))
                adapter = UNet(config.adapter, self.train.images.shape[1])
        robust = RobustClassifier(
            adapter,
            copy.deepcopy(self.classifier),
            steps=config.attack.steps,
            threat=config.threat,
            straight_through=config.straight_through,
        )
        return robust.eval().requires_grad_(False).to(self.device)

    def build_faster(self) -> RobustClassifier:
        """The same for training and generation, whose last bits may differ from what is judged and shipped."""
        robust = self.build()
        images = torch.from_numpy(self.train.images[:8]).to(self.device).float() / 255
        frozen = self.config.train.what == "adapter"
        robust.classifier = faster_classifier(robust.classifier, images, frozen=frozen)
        if robust.adapter is not None:
            faster_adapter(robust.adapter)
        return robust

    def learner(self) -> Learner:
        """A learner at the first update."""
        schedule = self.schedule
        learner = Learner(self.build_faster(), self.config.train, total_updates=schedule.updates, seed=self.config.seed)
        if self.initial is not None:
            learner.load_weights(self.initial)
        return learner


def run_serially(
    setup: Setup, *, stopped: Callable[[], bool] = lambda: False, report: Callable[[dict], None] | None = None
) -> None:
    """The whole loop in this process, without Ray: generates each round's units, then trains on them."""
    cache, versions = TrajectoryCache(setup.root), setup.versions
    generator = Generator(setup, cache)

    def obtain(units: list[Unit]) -> list[LedgerRow]:
        return [generator.generate(unit, partial(versions.load, unit.version)) for unit in units]

    run_rounds(setup, obtain, stopped=stopped, report=report)


class Generator:
    """Generates units for one loop, keeping the robust classifier of the last version it was asked for."""

    def __init__(self, setup: Setup, cache: TrajectoryCache) -> None:
        self.setup, self.cache = setup, cache
        self.robust: RobustClassifier | None = None
        self.held: str | None = None

    def generate(self, unit: Unit, weights: Callable[[], dict[str, Tensor]]) -> LedgerRow:
        """The unit's committed row; ``weights`` gives the version's weights where they are not held yet."""
        committed = self.cache.ledger.get(unit.fingerprint)
        if committed is not None:
            return committed
        if self.robust is None:
            self.robust = self.setup.build_faster()
        if self.held != unit.weights:
            load_trained(self.robust, weights())
            self.held = unit.weights
        return generate_unit(unit, self.robust, self.setup.train, self.cache, device=self.setup.device)


def load_trained(robust: RobustClassifier, weights: dict[str, Tensor]) -> RobustClassifier:
    """The robust classifier with the trained weights of a version; what is frozen stays as it is."""
    unknown = robust.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise ValueError(
            f"the weights do not belong to this robust classifier: it has no {unknown[0]!r} "
            f"({len(unknown)} such names); load them into the recipe that they were trained with"
        )
    return robust


def run_rounds(
    setup: Setup,
    obtain: Obtain,
    *,
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[dict], None] | None = None,
) -> None:
    """Train from the last checkpoint (or the start) to the last round, publishing every version on the way.

    ``obtain`` returns the ledger rows of a round's units once all are committed, or [] when stopped.
    ``stopped`` is asked at every update. With several workers (torch.distributed) each takes its slice of
    every batch, and rank 0 writes.
    """
    rank, _ = workers()
    with setup.journal.owned() if rank == 0 else nullcontext(), setup.config.train.applied():
        _run_rounds(setup, obtain, stopped, report or (lambda line: None), rank)


def _run_rounds(
    setup: Setup, obtain: Obtain, stopped: Callable[[], bool], report: Callable[[dict], None], rank: int
) -> None:
    any_worker(False, setup.device)  # all wait here for rank 0, which may still wait for the journal
    learner, schedule, versions, journal = setup.learner(), setup.schedule, setup.versions, setup.journal
    first = journal.resume(learner, setup.device)
    if rank == 0:
        journal.truncate(first)
        if first == 0:
            versions.publish(0, learner.weights())
    cache, window = TrajectoryCache(setup.root), ReplayWindow(setup.train, setup.device)
    for number in range(first, schedule.config.rounds):
        began = time.perf_counter()
        known = _known_versions(versions, schedule.version(number), stopped)
        rows = obtain(setup.units.of(number, known)) if known else []
        if any_worker(stopped() or not rows, setup.device):
            return
        _fill(window, setup, cache, number)
        waited = time.perf_counter() - began
        measured = _train_round(learner, schedule, window, number, stopped, setup.device)
        if measured is None:
            return
        if rank:
            continue
        versions.publish(number + 1, learner.weights())
        verdict = _judge(setup, learner, number + 1)
        line = round_line(schedule, number, rows, measured, waited, time.perf_counter() - began, verdict)
        due = _checkpoint_due(setup, number + 1)
        journal.write(line, learner, verdict, checkpoint=due)
        if due and not setup.keep_versions:
            versions.prune(schedule.version(schedule.window(number).start))
        report(line)


def _known_versions(versions: Versions, last: int, stopped: Callable[[], bool]) -> list[str]:
    """The fingerprints up to a version; ranks above 0 may have to wait for rank 0 to publish it. [] when stopped."""
    while versions.fingerprint(last) is None:
        if stopped():
            return []
        time.sleep(0.01)
    return versions.fingerprints(last)


def _fill(window: ReplayWindow, setup: Setup, cache: TrajectoryCache, number: int) -> None:
    """Bring the replay window to a round: after a resume that means reading all of it."""
    rounds, known = setup.schedule.window(number), setup.versions
    window.keep(rounds)
    for earlier in rounds:
        if earlier not in window:
            units = setup.units.of(earlier, known.fingerprints(setup.schedule.version(earlier)))
            window.add(earlier, [cache.read(unit.fingerprint) for unit in units])


def _train_round(
    learner: Learner, schedule: Schedule, window: ReplayWindow, number: int, stopped: Callable[[], bool], device: str
) -> list[dict[str, float]] | None:
    """The updates of a round; returns what each measured, or None when stopped."""
    rank, world = workers()
    for batch in schedule.batches(number):
        learner.update(window.batch(batch.part(rank, world)))
        if any_worker(stopped(), device):
            return None
    return learner.measured()


def _judge(setup: Setup, learner: Learner, version: int) -> Judgement | None:
    """The judge's verdict on the weights that would be shipped, where one is due."""
    if version % setup.config.judge.every and version != setup.config.schedule.rounds:
        return None
    return judge_on_holdout(load_trained(setup.build(), learner.shipped()), setup)


def judge_on_holdout(robust: nn.Module, setup: Setup) -> Judgement:
    """The one judge's verdict on a robust classifier: a fresh attack on the hold-out."""
    holdout = setup.holdout
    images, labels = torch.from_numpy(holdout.images), torch.from_numpy(holdout.labels)
    return judge(robust, images, labels, holdout.rows, setup.config.threat, setup.config.judge)


def _checkpoint_due(setup: Setup, version: int) -> bool:
    return version % setup.config.checkpoint_rounds == 0 or version == setup.config.schedule.rounds
