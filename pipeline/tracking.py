"""--track: the figures of a run, or of a search's trials, in MLflow or Weights & Biases, through their own clients.

Both are optional, and configured by their own environment variables. Which of a tracker's runs it is, and up to which
round it was told, is noted beside what it is about: so what resumes goes on with the same one and tells nothing twice.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, Protocol

from pipeline.progress import Say
from stages.storage import Storage
from stages.training.events import Settled, events_of, figures_of
from stages.training.journal import Journal

Tool = Literal["mlflow", "wandb"]
TOGETHER = 100  # settings that MLflow takes at once
Point = tuple[int, Mapping[str, float]]
"""How many rounds were done, and figures by name."""


class Client(Protocol):
    """What the two clients have in common."""

    def begin(self, name: str, settings: Mapping[str, object], known: str | None) -> str:
        """Begin a run, or go on with one that is ``known``; its id."""
        ...

    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def end(self, *, is_whole: bool) -> None:
        """Leave the run, as finished or as interrupted."""
        ...


class _MLflow:
    def __init__(self) -> None:
        self.module: Any = import_module("mlflow")

    def begin(self, name: str, settings: Mapping[str, object], known: str | None) -> str:
        run = self.module.start_run(run_id=known) if known else self.module.start_run(run_name=name)
        named = list(settings.items())
        for first in range(0, 0 if known else len(named), TOGETHER):
            self.module.log_params(dict(named[first : first + TOGETHER]))
        return run.info.run_id

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.module.log_metrics(dict(figures), step=step)

    def end(self, *, is_whole: bool) -> None:
        self.module.end_run("FINISHED" if is_whole else "KILLED")


class _Wandb:
    def __init__(self) -> None:
        self.module: Any = import_module("wandb")

    def begin(self, name: str, settings: Mapping[str, object], known: str | None) -> str:
        self.run = self.module.init(name=name, id=known, resume="allow", config=dict(settings))
        return self.run.id

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.run.log(dict(figures), step=step)

    def end(self, *, is_whole: bool) -> None:
        self.run.finish(exit_code=0 if is_whole else 1)


CLIENTS = {"mlflow": _MLflow, "wandb": _Wandb}


def check_tracker(tool: Tool) -> None:
    """Raise ValueError, with what to install, where a tracker's client cannot be imported."""
    try:
        CLIENTS[tool]()
    except ImportError as error:
        raise ValueError(f"--track {tool} needs its client ({error}): pip install 'rap-pipeline[{tool}]'") from None


class TrackedRun:
    """A run of a tracker's, which is begun where there is something new to tell."""

    def __init__(self, tool: Tool, place: Storage, name: str, settings: Mapping[str, object], say: Say) -> None:
        self.tool, self.place, self.name, self.settings, self.say = tool, place, name, settings, say
        self.client: Client = CLIENTS[tool]()
        self.key = f"tracking/{tool}.json"
        self.noted = json.loads(place.find(self.key) or b'{"run": null, "rounds": 0}')
        self._is_begun = False

    @property
    def rounds(self) -> int:
        """Up to which it was told."""
        return self.noted["rounds"]

    def tell(self, points: Iterable[Point]) -> None:
        """Log the points after those that were told. A tracker that fails ends no training: it is told later."""
        new = [(step, figures) for step, figures in points if step > self.rounds]
        try:
            for step, figures in new:
                if not self._is_begun:
                    self.noted["run"] = self.client.begin(self.name, self.settings, self.noted["run"])
                    self._is_begun = True
                self.client.log(figures, step)
                self.noted["rounds"] = step
        except Exception as error:
            self.say(f"{self.tool} could not be told ({error}); the same command tries again")
        if new:
            self.place.put(self.key, json.dumps(self.noted).encode())

    def end(self, *, is_whole: bool = True) -> None:
        """Nothing more is told for now, at the end or where work was interrupted."""
        if self._is_begun:
            self.client.end(is_whole=is_whole)


class Shown:
    """Where a training's figures are shown while it goes on: TensorBoard's events, and a tracker where one is asked
    for. To be entered as a context."""

    def __init__(self, journal: Journal, tracked: TrackedRun | None) -> None:
        self.journal, self.tracked = journal, tracked
        self._settled = [events_of(journal)]
        if tracked:
            self._settled.append(Settled(journal, tracked.rounds, lambda lines: tracked.tell(_points(lines))))

    def __enter__(self) -> "Shown":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.tracked:
            self.tracked.end(is_whole=kind is None)

    def follow(self, line: dict) -> None:
        """Called with each new line of metrics."""
        for each in self._settled:
            each.follow(line)

    def catch_up(self) -> None:
        """Show all that a checkpoint has settled."""
        for each in self._settled:
            each.catch_up()

    def conclude(self, figures: Mapping[str, float]) -> None:
        """Tell the tracker what came out; it counts as a step after the last round."""
        if self.tracked:
            self.tracked.tell([(self.journal.checkpointed + 1, figures)])


def _points(lines: Iterable[dict]) -> Iterator[Point]:
    for line in lines:
        yield line["round"] + 1, figures_of(line)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Settings of settings by one name each.

    >>> flattened({"attack": {"steps": 10}, "seed": 0})
    {'attack.steps': 10, 'seed': 0}
    """
    found: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
