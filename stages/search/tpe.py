"""Optuna's TPE (Bergstra et al. 2011), asked for a batch at a time: a function of what it is told, and a seed."""

import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from stages.search.space import Axis, Choice, Settings, Space, Value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

INSTALL = "pip install 'rap-pipeline[optuna]'"


def check_optuna() -> None:
    """Raise ValueError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise ValueError(
            f"search.algorithm is tpe, which is Optuna's, and Optuna is not installed: {INSTALL}, or use random"
        )


def suggested(space: Space, told: Sequence[tuple[Settings, float]], *, seed: int) -> Iterator[Settings]:
    """Settings that TPE asks for one after the other, when it was told the values (higher is better) of others.

    One that was told but does not lie in the space is passed over. What was asked for before counts as no good, so that
    a batch spreads.
    """
    import optuna  # an extra, which takes a second

    kinds = {name: _distribution(axis) for name, axis in space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of the two settings, since 2021
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for settings, value in told:
        if all(_holds(axis, settings[name]) for name, axis in space.items()):
            study.add_trial(optuna.trial.create_trial(params=settings, distributions=kinds, value=value))
    while True:
        asked = study.ask(kinds).params
        yield {name: asked[name] for name in space}


def _holds(axis: Axis, value: Value) -> bool:
    if isinstance(axis, Choice):
        return value in axis.values
    return isinstance(value, int | float) and axis.low <= value <= axis.high


def _distribution(axis: Axis) -> "BaseDistribution":
    from optuna import distributions

    if isinstance(axis, Choice):
        return distributions.CategoricalDistribution(axis.values)
    if axis.whole:
        return distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
