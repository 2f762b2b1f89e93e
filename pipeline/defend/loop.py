"""The loop on Ray: units to generators, versions out, and an end to both sides when either fails.

The main thread feeds a pool of generators, and the train worker's run goes on beside it. They meet on a board:
the train worker posts where it begins and each version that it publishes, the main thread the rows of each round
that is committed. What is published is what the serial loop (stages/training/rounds.py) publishes, byte for byte.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from cluster.board import Board, BoardLostError
from cluster.pool import Pool
from cluster.refs import put
from cluster.session import is_open
from cluster.tasks import LostError
from pipeline.artifacts import scratch
from pipeline.defend.generators import AT_ONCE, GeneratorWorker
from pipeline.delivery import named_setup
from pipeline.placement import LoopWorkers
from stages.training.generator import warn_of_repairs
from stages.training.journal import Start
from stages.training.rounds import Round, run_rounds
from stages.training.setup import Setup
from stages.training.units import after
from stages.training.versions import Version
from stages.trajectories.recorder import Recorder
from stages.trajectories.shards import AlteredShardError, LedgerRow, MissingShardError, read_shard

BOARDS = 3  # that may be lost before the loop is given up
VERSION, ROUND = "version", "round"  # topics on the board


def run_loop(setup: Setup, workers: LoopWorkers, *, progress: Callable[[dict], None]) -> int:
    """Run the loop to its last round, from whatever is there; returns how many shards were made. ``progress`` gets each
    new line of metrics.

    Raises the error of whichever side fails first, after stopping the other.
    """
    made = 0
    for lost in range(BOARDS):
        loop = _Loop(setup, workers, progress)
        try:
            loop.run()
            return made + loop.made
        except LostError:  # the board, or what it kept
            made += loop.made
            if lost + 1 == BOARDS:
                raise
    raise AssertionError


class _Loop:
    """One run of the loop with one board."""

    def __init__(self, setup: Setup, workers: LoopWorkers, progress: Callable[[dict], None]) -> None:
        self.setup, self.workers, self.progress = setup, workers, progress
        self.recorder = Recorder(setup.ledger)
        self.made = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        self.board, self.shared = Board.open(), put(named_setup(self.setup))
        threads = [
            threading.Thread(target=self._guarded, args=(each,), name=each.__name__, daemon=True)
            for each in (self._train, self._follow)
        ]
        for thread in threads:
            thread.start()
        try:
            self._generate()
        finally:
            if is_open():  # else the train worker's run never ends
                self._close()
                for thread in threads:
                    thread.join()
                self.board.end()
        if self.error is not None:
            raise self.error

    def _generate(self) -> None:
        """Every round through the pool, as soon as its version is published, from wherever training begins.

        With overlap a round is generated while the one before it is trained on; never more, since the next version is
        not there. Ends when training does.
        """
        with Pool(
            GeneratorWorker,
            size=self.workers.generators,
            cpus=self.workers.generator_cpus,
            gpus=self.workers.generator_gpus,
            max_in_flight=AT_ONCE,
            concurrency=AT_ONCE,
            name="generators",
        ) as pool:
            era = 0
            while (begun := self.board.begun(era)) is not None:
                era, start = begun
                self.recorder.begin(start.round, self.setup.journal.read, lambda name: self._find(name, pool))
                self._generate_from(era, start, pool)

    def _generate_from(self, era: int, start: Start, pool: Pool) -> None:
        setup, previous = self.setup, start.previous
        for number in range(start.round, setup.config.schedule.rounds):
            version = self.board.wait(era, VERSION, setup.schedule.version(number))
            if version is None:  # training has ended, or begun again
                return
            units = setup.units.of(number, version.value, previous)
            rows: dict[int, LedgerRow] = {}
            refs = (self.shared, version.arrays)
            for unit, done in pool.map("generate", units, payload=lambda unit, refs=refs: (unit, refs)):
                rows[unit.number], is_new, repaired = done
                self.made += is_new
                warn_of_repairs(repaired)
            previous = after(previous, units)
            committed = [rows[unit.number] for unit in units]
            self.recorder.enter(committed)
            self.board.post(era, ROUND, number, committed)

    def _find(self, name: str, pool: Pool) -> LedgerRow:
        """The row of a shard that is to be there; a generator makes it again where it is damaged or missing."""
        try:
            return read_shard(self.setup.root, name).row
        except (MissingShardError, AlteredShardError):
            ((_, (row, repaired)),) = pool.map("find", [name], payload=lambda name: (name, self.shared))
            warn_of_repairs(repaired)
            return row

    def _train(self) -> None:
        """The train workers' run, in a thread of its own."""
        from cluster.trainer import run_training  # takes seconds, and a run that is complete trains nothing

        try:
            run_training(
                _train,
                {"setup": self.shared, "board": self.board},
                workers=self.setup.config.train.workers,
                cpus=self.workers.trainer_cpus,
                gpus=self.workers.trainer_gpus,
                storage=scratch(self.setup.run, "ray"),
                name="train",
            )
        finally:
            self._close()

    def _follow(self) -> None:
        """Hand on the lines of metrics, in a thread of its own."""
        while (line := self.board.line()) is not None:
            self.recorder.follow(line)
            self.progress(line)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.error = self.error or error
            self._close()

    def _close(self) -> None:
        try:
            self.board.close()
        except BoardLostError as error:
            self.error = self.error or error


def _train(context: Any, config: dict) -> None:  # noqa: ANN401 - a TrainContext, whose module takes seconds
    """A train worker: `run_rounds`, with shards that the generators commit."""
    setup: Setup = config["setup"].get()
    with _Awaited(setup, config["board"]) as source:
        run_rounds(replace(setup, device=context.device), source, report=config["board"].tell)


class _Awaited:
    """Rounds as generators commit their shards; the next one is read and decoded behind this one's updates."""

    def __init__(self, setup: Setup, board: Board) -> None:
        self.setup, self.board = setup, board
        self.era = 0
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: dict[int, Future[Round | None]] = {}

    def __enter__(self) -> "_Awaited":
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead.shutdown(wait=False, cancel_futures=True)

    def begin(self, start: Start) -> None:
        """Rank 0 says where training begins."""
        self.era = self.board.begin(replace(start, versions=()))
        for version in start.versions:
            self.publish(version)

    def publish(self, version: Version) -> None:
        arrays = {name: value.numpy() for name, value in version.weights.items()}
        self.board.post(self.era, VERSION, version.number, version.fingerprint, arrays=arrays)

    def obtain(self, number: int, attacked: "Future[Version] | None") -> Round | None:
        if not self.era:  # another rank than 0, after it has begun
            found = self.board.begun(0)
            self.era = found[0] if found else 0
        waited = self._next.pop(number, None) or self._ahead.submit(self._read, number)
        if number + 1 < self.setup.config.schedule.rounds:
            self._next[number + 1] = self._ahead.submit(self._read, number + 1)
        return waited.result()

    def _read(self, number: int) -> Round | None:
        posted = self.board.wait(self.era, ROUND, number)
        if posted is None:
            return None
        return Round.of(self.setup, number, [read_shard(self.setup.root, row.fingerprint) for row in posted.value])
