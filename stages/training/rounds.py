"""The loop: generate against one version, train to the next, judge now and then.

It is written once. `run_rounds` trains; where the shards come from is a `RoundSource`: `run_serially` makes them on the
spot, the loop on Ray (pipeline/defend/loop.py) waits until its generators have. Both publish the same bytes.
"""

import copy
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stages.evaluation.judge import Judgement, judge
from stages.lease import lease
from stages.numerics import within_memory
from stages.training.adapter import Learner
from stages.training.batches import RoundExamples
from stages.training.behind import Behind
from stages.training.distributed import any_worker, workers
from stages.training.generator import Generator, warn_of_repairs
from stages.training.journal import Start, round_line
from stages.training.schedule import Batch
from stages.training.setup import Setup, load_trained
from stages.training.units import after
from stages.training.versions import Version
from stages.trajectories.recorder import Recorder
from stages.trajectories.shards import LedgerRow, Shard

AT_ONCE = 4  # units: on a fast GPU, storing one takes longer on a core than attacking several


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """A round that was generated: the rows of its shards, in order of unit, and what its updates train on."""

    rows: list[LedgerRow]
    examples: RoundExamples
    batches: list[Batch]

    @staticmethod
    def of(setup: Setup, number: int, shards: list[Shard]) -> "Round":
        """A round from its shards in memory."""
        parts, batches = [shard.segments for shard in shards], setup.schedule.batches(number)
        starts = setup.config.train.objective.needs_starts
        examples = RoundExamples(parts, batches, setup.train, setup.device, starts=starts)
        return Round(rows=[shard.row for shard in shards], examples=examples, batches=batches)


@runtime_checkable
class RoundSource(Protocol):
    """Where rounds come from."""

    def begin(self, start: Start) -> None:
        """Training begins, or goes on, there; its versions are the first that are attacked."""
        ...

    def publish(self, version: Version) -> None:
        """A version that was trained. Called behind the computation, in order."""
        ...

    def obtain(self, number: int, attacked: "Future[Version] | None") -> Round | None:
        """A round once all of it is committed, None when stopped; ``attacked`` are its weights (rank 0 knows them)."""
        ...


class Serial:
    """Rounds generated in this process when they are asked for: while a unit is attacked, others are read, packed,
    checked and written."""

    def __init__(self, setup: Setup, stopped: Callable[[], bool], recorder: Recorder | None = None) -> None:
        self.setup, self.stopped, self.recorder = setup, stopped, recorder
        self.generator = Generator(setup)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="units")  # a new one each round takes its time
        self.made = 0

    def close(self) -> None:
        """Wait for what is being made, where a round ended early; nothing more is begun."""
        self._threads.shutdown(cancel_futures=True)

    def begin(self, start: Start) -> None:
        self.previous = start.previous
        if self.recorder:
            self.recorder.begin(start.round, self.setup.journal.read, self._find)

    def _find(self, name: str) -> LedgerRow:
        found = self.generator.find(name)
        warn_of_repairs(found.repaired)
        return found.shard.row

    def publish(self, version: Version) -> None:
        """Nobody else waits for it."""

    def obtain(self, number: int, attacked: "Future[Version] | None") -> Round | None:
        if self.stopped():
            return None
        assert attacked is not None  # there is one rank
        version = attacked.result()
        units = self.setup.units.of(number, version.fingerprint, self.previous)
        spread = self._threads.map if len(units) > 1 else map  # nothing goes on beside a single one
        made = list(spread(lambda unit: self.generator.shard(unit, lambda: version.weights), units))
        for each in made:
            self.made += each.is_new
            warn_of_repairs(each.repaired)
        self.previous = after(self.previous, units)
        if self.recorder:
            self.recorder.enter([each.shard.row for each in made])
        return Round.of(self.setup, number, [each.shard for each in made])


def run_serially(
    setup: Setup,
    *,
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[dict], None] | None = None,
    indexed: bool = True,
) -> int:
    """The whole loop in this process, without Ray; returns how many shards it made. ``stopped`` is asked each round.

    The ledger is written where ``indexed``, for which PyArrow is needed; the shards can rebuild it.
    """
    recorder = Recorder(setup.ledger) if indexed else None
    source = Serial(setup, stopped, recorder)

    def follow(line: dict) -> None:
        if recorder:
            recorder.follow(line)
        if report:
            report(line)

    try:
        run_rounds(setup, source, report=follow)
    finally:
        source.close()
    return source.made


def run_rounds(setup: Setup, source: RoundSource, *, report: Callable[[dict], None]) -> None:
    """Train from the last checkpoint (or the start) to the last round, publishing every version on the way.

    With several workers (torch.distributed) each takes its slice of every batch, and rank 0 writes. ``report`` gets a
    line a round.
    """
    rank, _ = workers()
    owned = lease(setup.run, "train/lock", wait=True) if rank == 0 else nullcontext()
    with owned, setup.config.train.applied(), Behind() as behind:
        _Rounds(setup, source, behind, report).run()


class _Rounds:
    """One pass of `run_rounds`, from where it goes on."""

    def __init__(self, setup: Setup, source: RoundSource, behind: Behind, report: Callable[[dict], None]) -> None:
        self.setup, self.source, self.behind, self.report = setup, source, behind, report
        self.rank, self.world = workers()
        self.journal, self.schedule = setup.journal, setup.schedule
        self.versions: dict[int, Future[Version]] = {}
        self.set_aside = 0

    def run(self) -> None:
        any_worker(False, self.setup.device)  # all wait here for rank 0, which may wait for its lease
        learner = self.setup.learner()
        start = self.journal.resume(learner, self.setup.device)
        self.previous, self.published = dict(start.previous), start.published
        if not self.setup.repeats:
            self.set_aside, self.published = sum(each > start.round for each in start.published), {}
        if self.rank == 0:
            self._begin(start, learner)
        any_worker(False, self.setup.device)  # and here for what it says to whoever generates
        for number in range(start.round, self.schedule.config.rounds):
            began = time.perf_counter()
            found = self.source.obtain(number, self.versions.get(self.schedule.version(number)))
            if any_worker(found is None, self.setup.device) or found is None:
                return
            waited = time.perf_counter() - began
            parts = [batch.part(self.rank, self.world) for batch in found.batches]
            with within_memory("schedule.batch", self.schedule.config.batch):
                for batch in found.examples.batches(parts):
                    learner.update(batch)
                measured = learner.measured()
            if self.rank == 0:
                self._end_round(number, learner, found.rows, measured, waited, began)

    def _begin(self, start: Start, learner: Learner) -> None:
        """The first versions, which the checkpoint holds or the learner is."""
        if not start.round:
            start = replace(start, versions=(self._named(0, _copied(learner.weights())),))
            if not self.schedule.config.rounds:
                self.journal.write_best(learner.shipped(), 0)
                self.journal.write_checkpoint(0, learner.state(), list(start.versions), {}, None)
        for version in start.versions:
            self.versions[version.number] = Future()
            self.versions[version.number].set_result(version)
        self.source.begin(start)

    def _named(self, number: int, weights: dict[str, Tensor]) -> Version:
        """A version that is new, checked against what was published before an interruption."""
        version = Version.of(number, weights)
        version.check(self.published.get(number))
        if self.setup.keep_versions:
            self.setup.versions.keep(version)
        return version

    def _end_round(
        self, number: int, learner: Learner, rows: list[LedgerRow], measured: list[dict], waited: float, began: float
    ) -> None:
        """Publish the next version, judge it, and write down what was done; all writing goes on behind."""
        weights = _copied(learner.weights())

        def publish() -> Version:
            version = self._named(number + 1, weights)
            self.source.publish(version)
            return version

        published = self.versions[number + 1] = self.behind.submit(publish)
        verdict = _judge(self.setup, learner, number + 1)
        seconds = time.perf_counter() - began
        line = round_line(self.schedule, number, rows, measured, waited=waited, seconds=seconds, verdict=verdict)
        if self.set_aside:
            line["set_aside"], self.set_aside = self.set_aside, 0
        self.previous |= {row.cohort: row.fingerprint for row in rows}
        line["checkpoint"] = _checkpoint_due(self.setup, number + 1)
        if self.journal.enter(line):
            best = _copied(learner.shipped())
            self.behind.submit(lambda: self.journal.write_best(best, number + 1))
        self.behind.submit(lambda: self.journal.write({**line, "weights": published.result().fingerprint}))
        needed = range(self.schedule.version(number + 1), number + 2)
        self.versions = {each: self.versions[each] for each in needed}
        if line["checkpoint"]:
            # copies: what the next rounds add is published behind the checkpoint, which would wait for it for ever
            state, versions, previous = copy.deepcopy(learner.state()), [*self.versions.values()], dict(self.previous)
            judged = self.journal.best
            self.behind.submit(
                lambda: self.journal.write_checkpoint(
                    number + 1, state, [version.result() for version in versions], previous, judged
                )
            )
        self.report(line)


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they are now, which the next update leaves alone."""
    return {name: value.detach().clone() for name, value in weights.items()}


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
