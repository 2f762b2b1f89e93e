"""Trials on Ray Tune: each in a process and a placement group of its own, as many at once as there is room for.

Tune only places and runs them, begins one that died again, and keeps its own logs. What a trial finds it keeps itself,
so nothing of Tune's is read afterwards, and an interrupted call is repeated by another one.
"""

import secrets
import shutil
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from cluster.session import check_room
from cluster.tasks import RETRIES

Ended = Callable[[str, str | None], None]
"""Called with the name of each trial that ended, and why where it failed."""


def run_trials(
    trial: Callable[[Any], None],
    asked: Mapping[str, Any],
    *,
    cpus: float,
    gpus: float = 0,
    concurrent: int | None = None,
    logs: Path,
    ended: Ended | None = None,
) -> dict[str, str]:
    """Call ``trial(asked[name])`` for every name, each in a process of its own; returns why some failed, by name.

    ``concurrent`` bounds the trials that run at once; unset, as many as there is room for. Tune's logs lie below
    ``logs``, in a folder a trial. ``ended`` is called in this process. A trial that fails, or
    whose process dies, is begun again up to RETRIES times.

    Raises PlacementError, before anything is placed, where no node can ever hold a trial.
    """
    check_room("a trial", cpus=cpus, gpus=gpus)
    folder = logs.absolute() / secrets.token_hex(4)
    folder.mkdir(parents=True)
    room = tune.PlacementGroupFactory([{"CPU": cpus, "GPU": gpus}])
    listener = _Listener(ended or _ignore)
    token = _listening.set(listener)
    try:
        tune.Tuner(
            tune.with_resources(_runner(trial, dict(asked)), room),
            param_space={"trial": tune.grid_search(list(asked))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[_Announcer()],
            ),
        ).fit()
    finally:
        _listening.reset(token)
    if not listener.failed:
        shutil.rmtree(folder, ignore_errors=True)  # of what ended well, all is with the trials themselves
    return listener.failed


def _runner(trial: Callable[[Any], None], asked: dict[str, Any]) -> Callable[[dict[str, str]], None]:
    """What Tune calls in a trial's process."""

    def run(choice: dict[str, str]) -> None:
        trial(asked[choice["trial"]])
        tune.report({"ended": True})  # of a trial without a report, Tune prints that there is none

    return run


def _name(trial: TuneTrial) -> str:
    return trial.config["trial"]


class _Listener:
    """Hears which trials ended, and keeps why some failed."""

    def __init__(self, ended: Ended) -> None:
        self.ended, self.failed = ended, {}

    def __call__(self, trial: TuneTrial, error: str | None) -> None:
        if error is not None:
            self.failed[_name(trial)] = error
        self.ended(_name(trial), error)


_listening: ContextVar[_Listener] = ContextVar("listening")


def _ignore(_name: str, _error: str | None) -> None:
    """Nobody listens."""


class _Announcer(tune.Callback):
    """Tells the listener which trials ended.

    Tune stores its callbacks on disk, and a function that writes to a terminal cannot be stored: so the listener stands
    in a context variable.
    """

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: object) -> None:
        _listening.get()(trial, None)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: object) -> None:
        _listening.get()(trial, _described(trial))


def _described(trial: TuneTrial) -> str:
    """Why a trial failed at last, in a line."""
    error = trial.get_pickled_error() or trial.get_error()
    cause = getattr(error, "cause", None) or error
    return "its process died" if cause is None else " ".join(f"{type(cause).__name__}: {cause}".split())
