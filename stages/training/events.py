"""TensorBoard events: the lines of metrics of a training, and what a trial of a search tried and found.

A file holds the rounds from one checkpoint to the next and is written once, when those rounds are settled: so a run
that resumes writes no round twice, and a bucket gets an object a checkpoint. `tensorboard --logdir RUN` shows them.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

from stages.storage import Storage
from stages.training.journal import Journal

FOLDER = "tensorboard"  # of a run, and of a search
_FILE = "events.out.tfevents."  # what TensorBoard knows its files by; they are read in the order of their names
_ALWAYS = ("round", "version", "updates", "checkpoint")  # of a line, which are no curves


class Settled:
    """Hands on a journal's lines once a checkpoint has settled them, from a round on: none is told twice."""

    def __init__(self, journal: Journal, since: int, tell: Callable[[list[dict]], None]) -> None:
        self.journal, self.since, self.tell = journal, since, tell
        self._is_due = True

    def follow(self, line: dict) -> None:
        """Called with each new line; a checkpoint is written behind its own line, and so looked for at the next one."""
        if self._is_due:
            self.catch_up()
        self._is_due = line["checkpoint"]

    def catch_up(self) -> None:
        """Hand on what is settled by now."""
        done = self.journal.checkpointed
        if done > self.since:
            self.tell(list(takewhile(lambda line: line["round"] < done, self.journal.read(self.since))))
            self.since = done


def events_of(journal: Journal) -> Settled:
    """A run's events, from where they end on; those of rounds that no checkpoint holds any more are removed."""
    run, done = journal.run, journal.checkpointed
    ends = {name: int(found[1]) for name in run.names(FOLDER) if (found := re.fullmatch(rf"{_FILE}\d+-(\d+)", name))}
    run.delete(f"{FOLDER}/{name}" for name, end in ends.items() if end > done)
    since = max((end for end in ends.values() if end <= done), default=0)

    def tell(lines: list[dict]) -> None:
        first, end = lines[0]["round"], lines[-1]["round"] + 1
        _write(run.below(FOLDER), first, end, _curves(lines))

    return Settled(journal, since, tell)


def write_trial(
    folder: Storage, journal: Journal, settings: Mapping[str, object], verdict: Mapping, since: int
) -> None:
    """A trial's events from one rung, ``since``, to that of its ``verdict``: its lines of metrics, as far as they are
    kept, its settings as hparams, and the verdict. Nothing where they are there."""
    end = verdict["rounds"]
    if _name(since, end) not in folder.names():
        lines = takewhile(lambda line: line["round"] < end, journal.read(since))
        _write(folder, since, end, [*_curves(list(lines)), *_outcome(settings, verdict)])


def figures_of(line: dict) -> dict[str, float]:
    """What a line of metrics says in numbers, by the name of its curve."""
    judged = line.get("judge", {})
    return {f"training/{name}": value for name, value in line.items() if _is_figure(name, value)} | {
        f"judge/{name}": judged[name]["value"] for name in ("robust", "clean") if name in judged
    }


def _curves(lines: Sequence[dict]) -> Iterator[tuple[float, int, bytes]]:
    """Every line as an event: its time, how many rounds were done, and its figures."""
    from tensorboardX import summary  # with its protocol buffers, which only a driver needs

    at = time.time() - sum(line["seconds"] for line in lines)
    for line in lines:
        at += line["seconds"]
        for name, value in figures_of(line).items():
            yield at, line["round"] + 1, summary.scalar(name, value)


def _is_figure(name: str, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and name not in _ALWAYS


def _outcome(settings: Mapping[str, object], verdict: Mapping) -> Iterator[tuple[float, int, bytes]]:
    from tensorboardX import summary

    found = {f"verdict/{name}": verdict[name]["value"] for name in ("robust", "clean")}
    known = {name: "none" if value is None else value for name, value in settings.items()}
    for each in (*summary.hparams(known, found), *(summary.scalar(name, value) for name, value in found.items())):
        yield time.time(), verdict["rounds"], each


def _write(folder: Storage, first: int, end: int, events: Iterable[tuple[float, int, object]]) -> None:
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import RecordWriter

    with folder.folder() as local:
        writer = RecordWriter(str(local / _name(first, end)))
        writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for at, step, content in events:
            writer.write(Event(wall_time=at, step=step, summary=content).SerializeToString())
        writer.close()


def _name(first: int, end: int) -> str:
    return f"{_FILE}{first:07}-{end:07}"
