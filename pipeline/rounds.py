"""The loop on Ray: units to generators, versions out, and an end to both sides when either fails.

The main thread feeds a pool of generators; the train worker's run goes on beside it. They meet only in files
that are renamed into place: shards with their ledger rows, versions, and `stop`. What is published is what the
serial loop (stages/training/rounds.py) publishes, byte for byte.
"""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from cluster.pool import Pool, Ref, put
from cluster.session import is_open
from pipeline.generators import GeneratorWorker
from pipeline.workers import LoopWorkers
from stages.training.journal import Journal
from stages.training.rounds import Setup, run_rounds
from stages.trajectories.cache import TrajectoryCache
from stages.trajectories.generate import Unit
from stages.trajectories.ledger import LedgerRow

POLL = 0.02  # seconds between looks at a file that another process will rename into place


def run_loop(setup: Setup, workers: LoopWorkers, *, progress: Callable[[dict], None]) -> None:
    """Run the loop to its last round, from whatever is there. ``progress`` gets each new line of metrics.

    Raises the error of whichever side fails first, after stopping the other.
    """
    stop = setup.run / "stop"
    stop.unlink(missing_ok=True)
    shared = put(setup)
    trainer = _Trainer(setup, shared, workers, stop, progress)
    trainer.start()
    try:
        with closing(_generate(setup, shared, workers, trainer)) as rows:
            for _ in rows:
                trainer.follow()
        while trainer.is_alive():
            trainer.join(POLL)
            trainer.follow()
    finally:
        stop.touch()
        if is_open():  # else the train worker's run never ends
            trainer.join()
            stop.unlink()
    trainer.follow()
    if trainer.error is not None:
        raise trainer.error


def _generate(
    setup: Setup, shared: Ref[Setup], workers: LoopWorkers, trainer: "_Trainer"
) -> Generator[LedgerRow, None, None]:
    """Every round's missing units through the pool, each round as soon as its version is published.

    Ends early when the train worker has failed. With overlap a round is generated while the one before it is
    trained on; never more, since the next version is not there.
    """
    cache = TrajectoryCache(setup.root)
    with Pool(
        GeneratorWorker,
        size=workers.generators,
        cpus=workers.generator_cpus,
        gpus=workers.generator_gpus,
        name="generators",
    ) as pool:
        for number in range(setup.config.schedule.rounds):
            version = setup.schedule.version(number)
            if not trainer.wait_for(lambda version=version: setup.versions.fingerprint(version) is not None):
                return
            units = setup.units.of(number, setup.versions.fingerprints(version))
            missing = [unit for unit in units if unit.fingerprint not in cache]
            if missing and setup.versions.holds(version):  # else no round will train on them any more
                weights = put(setup.versions.load(version))
                for _, row in pool.map("generate", missing, payload=lambda unit: (unit, [shared, weights])):  # noqa: B023
                    yield row


class _Trainer(threading.Thread):
    """The train worker's run, beside the main thread; keeps its error for whoever asks."""

    def __init__(
        self, setup: Setup, shared: Ref[Setup], workers: LoopWorkers, stop: Path, progress: Callable[[dict], None]
    ) -> None:
        super().__init__(name="trainer", daemon=True)
        self.setup, self.shared, self.workers, self.stop, self.progress = setup, shared, workers, stop, progress
        self.journal = Journal(setup.run)
        self.told = max((line["round"] for line in self.journal.lines()), default=-1)
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            from cluster.trainer import run_training  # takes seconds, and a run that is complete trains nothing

            run_training(
                _train,
                {"setup": self.shared, "stop": str(self.stop)},
                workers=self.setup.config.train.workers,
                cpus=self.workers.trainer_cpus,
                gpus=self.workers.trainer_gpus,
                storage=self.setup.run / "ray",
                name="train",
            )
        except BaseException as error:
            self.error = error

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds; False when the run ended before."""
        while not condition():
            if not self.is_alive():
                return condition()
            time.sleep(POLL)
        return True

    def follow(self) -> None:
        """Hand on the lines of metrics.jsonl that are new."""
        for line in self.journal.lines():
            if line["round"] > self.told:
                self.told = line["round"]
                self.progress(line)


def _train(context: object, config: dict) -> None:
    """The train worker: `run_rounds`, with shards that the generators commit."""
    setup: Setup = config["setup"].get()
    stop = Path(config["stop"])
    cache = TrajectoryCache(setup.root)

    def obtain(units: list[Unit]) -> list[LedgerRow]:
        for unit in units:
            while unit.fingerprint not in cache:
                if stop.exists():
                    return []
                time.sleep(POLL)
        rows = [cache.ledger.get(unit.fingerprint) for unit in units]
        return [row for row in rows if row is not None]

    run_rounds(setup, obtain, stopped=stop.exists)
