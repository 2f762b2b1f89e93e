"""A search on Ray Tune: trials side by side, the worse ones stopped early (ASHA), resumable.

Which configs are tried is a function of the space and the seed alone. Which of them are stopped early
depends on the order in which rungs are reached, so with several at once two searches may differ; a
finished one is kept and never repeated.
"""

import hashlib
import heapq
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler

from cluster.session import check_room

Metrics = dict[str, Any]
Trial = Callable[[dict[str, Any], Callable[[Metrics], None]], None]
Mode = Literal["min", "max"]
Progress = Callable[[dict[str, Any], Metrics | None], None]
"""Called with a trial's config and what it reported, None where it failed."""

RETRIES = 2
"""How often a trial is begun again after it failed or its process died."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What one trial came to."""

    config: dict[str, Any]
    """The values that it tried."""
    rungs: list[Metrics]
    """The metrics that it reported, in order; fewer than the search's rungs when it was stopped early."""
    error: str | None
    """Why it failed, if it did."""


def search(
    trial: Trial,
    space: Mapping[str, Sequence[Any]],
    *,
    trials: int,
    metric: str,
    mode: Mode = "max",
    rungs: int,
    grace: int = 1,
    reduction_factor: int = 2,
    cpus_per_trial: float,
    gpus_per_trial: float = 0,
    concurrent: int | None = None,
    storage: Path,
    name: str,
    seed: int,
    progress: Progress | None = None,
) -> list[TrialResult]:
    """Call ``trial(config, report)`` for every chosen config, each in a process of its own; return all results.

    A trial calls ``report`` once a rung, with the rung's number (1, 2, ...) as "rung" and the metric.
    From rung ``grace`` on, it ends inside ``report`` when it is not among the best
    1 / ``reduction_factor`` of those that got as far. ``concurrent`` bounds the trials that run at
    once; unset, as many as there is room for. ``progress`` is told of every rung, and of every failure.

    ``space`` maps names to the values to try: all combinations when ``trials`` allows it, else a
    sample without repeats. Its values, and the metrics, must be what JSON can hold.

    The same call again returns the results of a finished search, and goes on with an unfinished one:
    trials that were running or failed begin again. Results lie under ``storage / name``.

    Raises ValueError when the numbers make no sense, or ``name`` holds a search of something else.
    """
    _check(space, trials, rungs, grace, reduction_factor)
    check_room(f"a trial of {name}", cpus=cpus_per_trial, gpus=gpus_per_trial)
    # Through JSON, so that results are the same whether they are computed or read.
    configs = json.loads(json.dumps(choose(space, trials, seed)))
    asha = {"rungs": rungs, "grace": grace, "reduction_factor": reduction_factor}
    folder = storage.absolute() / name
    _claim(folder, {"configs": configs, "metric": metric, "mode": mode} | asha)
    finished = folder / "results.json"
    if finished.exists():
        return [TrialResult(**result) for result in json.loads(finished.read_text())]
    tune_config = tune.TuneConfig(
        metric=metric,
        mode=mode,
        scheduler=ASHAScheduler(time_attr="rung", max_t=rungs, grace_period=grace, reduction_factor=reduction_factor),
        max_concurrent_trials=concurrent,
        reuse_actors=True,
    )
    room = tune.PlacementGroupFactory([{"CPU": cpus_per_trial, "GPU": gpus_per_trial}])
    trainable = tune.with_resources(_runner(trial, configs, metric), room)
    listening = _progress.set(progress or _ignore)
    try:
        grid = _tuner(trainable, tune_config, folder, _Announcer(configs)).fit()
    finally:
        _progress.reset(listening)
    results = [_result(configs, outcome) for outcome in sorted((grid[n] for n in range(len(grid))), key=_index)]
    if not any(result.error for result in results):
        _write(finished, [asdict(result) for result in results])
    return results


def choose(space: Mapping[str, Sequence[Any]], trials: int, seed: int) -> list[dict[str, Any]]:
    """The configs to try: the whole grid when it has at most ``trials`` points, else a sample without repeats."""
    size = math.prod(len(values) for values in space.values())

    def order(point: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{point}".encode(), digest_size=8).digest()

    points = range(size) if trials >= size else sorted(heapq.nsmallest(trials, range(size), key=order))
    return [_config(space, point) for point in points]


def _config(space: Mapping[str, Sequence[Any]], point: int) -> dict[str, Any]:
    config = {}
    for name, values in space.items():
        point, index = divmod(point, len(values))
        config[name] = values[index]
    return config


def _check(space: Mapping[str, Sequence[Any]], trials: int, rungs: int, grace: int, reduction_factor: int) -> None:
    if not space or not all(len(values) for values in space.values()):
        raise ValueError(f"the search space is {dict(space)}; every parameter needs at least one value")
    if trials < 1 or not 1 <= grace <= rungs or reduction_factor < 2:
        raise ValueError(
            f"trials is {trials}, grace {grace}, rungs {rungs}, reduction_factor {reduction_factor}; a search "
            "needs at least 1 trial, a grace of 1 to rungs, and a reduction_factor of at least 2"
        )


def _claim(folder: Path, description: dict[str, Any]) -> None:
    """Write down what is searched; refuse a folder that holds another search."""
    claim = folder / "search.json"
    if not claim.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(claim, description)
    elif json.loads(claim.read_text()) != json.loads(json.dumps(description)):
        raise ValueError(
            f"{folder} holds another search (see search.json there): choose another name, or remove the folder"
        )


def _runner(trial: Trial, configs: list[dict[str, Any]], metric: str) -> Callable[[dict[str, int]], None]:
    """What Tune calls in a trial's process."""

    def run(choice: dict[str, int]) -> None:
        history: list[Metrics] = []

        def report(metrics: Metrics) -> None:
            if missing := {"rung", metric} - metrics.keys():
                raise ValueError(f"the trial reported {sorted(metrics)}, without {sorted(missing)}")
            history.append(json.loads(json.dumps(metrics)))
            # Tune keeps the last report; with the history in it, that is all of them.
            tune.report({**metrics, "history": list(history)})

        trial(dict(configs[choice["index"]]), report)

    return run


def _tuner(
    trainable: Callable[[dict[str, int]], None],
    tune_config: tune.TuneConfig,
    folder: Path,
    announcer: "_Announcer",
) -> tune.Tuner:
    """A new search, or the one that the folder holds, with its failed and unfinished trials begun again."""
    path = str(folder / "tune")
    space = {"index": tune.grid_search(list(range(len(announcer.configs))))}
    if tune.Tuner.can_restore(path):
        return tune.Tuner.restore(path, trainable, restart_errored=True, param_space=space)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune_config,
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[announcer],
        ),
    )


_progress: ContextVar[Progress] = ContextVar("progress")


def _ignore(_config: dict[str, Any], _rung: Metrics | None) -> None:
    """Nobody listens."""


class _Announcer(tune.Callback):
    """Tells what each rung came to.

    Tune stores its callbacks on disk with the search, and a function that writes to a terminal cannot
    be stored: so the listener stands in a context variable.
    """

    def __init__(self, configs: list[dict[str, Any]]) -> None:
        self.configs = configs

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: Metrics, **_: object
    ) -> None:
        _progress.get()(self.configs[trial.config["index"]], result)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: object) -> None:
        _progress.get()(self.configs[trial.config["index"]], None)


def _index(outcome: tune.Result) -> int:
    return (outcome.config or {})["index"]


def _result(configs: list[dict[str, Any]], outcome: tune.Result) -> TrialResult:
    return TrialResult(
        config=configs[_index(outcome)],
        rungs=(outcome.metrics or {}).get("history", []),
        error=None if outcome.error is None else _describe(outcome.error),
    )


def _describe(error: Exception) -> str:
    cause = getattr(error, "cause", error)
    return f"{type(cause).__name__}: {cause}"


def _write(path: Path, content: object) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.rename(path)
