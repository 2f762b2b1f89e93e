"""Placement: how the resources of a cluster are divided among generators, train workers, trials and evaluations."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from cluster.machines import Cluster
from cluster.session import PlacementError, session
from pipeline.flags import WorkersConfig
from pipeline.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a single task gets."""

    device: str
    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class LoopWorkers:
    """Who does the work of a loop, and with what; none of it changes the result."""

    generators: int
    generator_cpus: float
    generator_gpus: float
    trainer_cpus: float
    trainer_gpus: float


@dataclass(frozen=True, kw_only=True)
class Workers(Place):
    """What a single task, a trial and the loop's actors get."""

    loop: LoopWorkers
    trial_gpus: float = 0
    trials: int | None = None
    """Trials at once; None: as many as there is room for."""


class Session:
    """A Ray session that starts when it is first needed: a run that is complete never starts one.

    ``first`` is done on it before any work.
    """

    def __init__(
        self, config: WorkersConfig, recipe: Recipe, stack: ExitStack, *, first: Callable[[Place], None]
    ) -> None:
        self.config, self.recipe, self.stack, self.first = config, recipe, stack, first
        self.found: Workers | None = None

    def __call__(self) -> Workers:
        if self.found is None:
            cluster = self.stack.enter_context(session(cpus=self.config.cpus))
            self.found = divide(cluster, self.config, self.recipe)
            self.first(self.found)
        return self.found


def own_device(config: WorkersConfig) -> str:
    """Where this process computes what no worker does: on its own GPU where it has one and may use it."""
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def demanded_device(config: WorkersConfig) -> str:
    """`own_device`, for work that is done here altogether. Raises PlacementError where CUDA is asked for in vain."""
    if config.device == "cuda" and own_device(config) == "cpu":
        raise PlacementError("the device is cuda, but PyTorch finds no GPU on this machine: use auto or cpu")
    return own_device(config)


def place_for_tasks(cluster: Cluster, config: WorkersConfig) -> Place:
    """One GPU for a task where the cluster has any, else one CPU.

    Raises PlacementError where CUDA is asked for in vain.
    """
    if config.device == "cuda" and not cluster.gpus:
        raise PlacementError("the device is cuda, but the cluster has no GPU: use auto or cpu, or add GPU nodes")
    if cluster.gpus and config.device != "cpu":
        return Place(device="cuda", cpus=1, gpus=1)
    return Place(device="cpu", cpus=1, gpus=0)


def divide(cluster: Cluster, config: WorkersConfig, recipe: Recipe) -> Workers:
    """Divide a cluster: the train workers of the recipe come first, generators get what they leave.

    Raises PlacementError, with the numbers, where the cluster cannot hold them.
    """
    place = place_for_tasks(cluster, config)
    loop = _on_gpus(cluster, config, recipe) if place.device == "cuda" else _on_cpus(cluster, config, recipe)
    trial_gpus = place.gpus if config.trial_gpus is None else config.trial_gpus
    if trial_gpus and place.device != "cuda":
        raise PlacementError(
            f"workers.trial_gpus is {trial_gpus:g}, but networks run on CPUs here: leave it unset, or add GPU nodes"
        )
    return Workers(**vars(place), loop=loop, trial_gpus=trial_gpus, trials=config.trials)


def _on_gpus(cluster: Cluster, config: WorkersConfig, recipe: Recipe) -> LoopWorkers:
    """A GPU for every actor, but where there is one alone: a train worker and a generator have half of it each.

    nccl needs a GPU for every rank, so train workers share with nobody.
    """
    gpus, trainers = int(cluster.gpus), recipe.train.workers
    share = 0.5 if gpus == trainers == 1 else 1.0
    left = 1 if share < 1 else gpus - trainers
    if left < 1:
        raise PlacementError(
            f"train.workers is {trainers}, and each of them needs a GPU of its own, beside one for a generator: "
            f"{trainers + 1} in all, and the cluster has {gpus}. Set train.workers to {max(1, gpus - 1)} or less, or "
            "add GPUs"
        )
    generators = left if config.generators is None else config.generators
    if generators > left:
        raise PlacementError(
            f"workers.generators is {generators}, but beside train.workers {trainers} there is room for {left} on "
            f"{gpus} GPUs: set it to {left} or less, or leave it unset"
        )
    generators = min(generators, _units(recipe))
    cpus = _largest_share(cluster, generators + trainers, gpus=share)
    return LoopWorkers(
        generators=generators, generator_cpus=cpus, generator_gpus=share, trainer_cpus=cpus, trainer_gpus=share
    )


def _on_cpus(cluster: Cluster, config: WorkersConfig, recipe: Recipe) -> LoopWorkers:
    """A CPU for each thread that computes, as far as there are any; more actors than CPUs take turns."""
    trainers = recipe.train.workers
    left = int((cluster.cpus - trainers * recipe.train.threads) // recipe.attack.threads)
    generators = min(max(1, left) if config.generators is None else config.generators, _units(recipe))
    cpus = _largest_share(cluster, generators + trainers, gpus=0)
    return LoopWorkers(generators=generators, generator_cpus=cpus, generator_gpus=0, trainer_cpus=cpus, trainer_gpus=0)


def _units(recipe: Recipe) -> int:
    """Units of a round: more generators than that would hold what they never use."""
    return recipe.schedule.round_cohorts


def _largest_share(cluster: Cluster, actors: int, *, gpus: float) -> float:
    """The CPUs of each of so many actors, at most 1: a CPU here is a place, not a limit.

    Raises PlacementError where no share is small enough.
    """
    if cluster.is_unlimited:
        return 1.0
    for parts in range(1, actors + 1):
        share = int(10_000 / parts) / 10_000  # Ray counts in ten-thousandths
        if cluster.room(cpus=share, gpus=gpus) >= actors:
            return share
    raise PlacementError(
        f"{actors} workers with {gpus:g} GPUs and a share of a CPU each do not fit on the cluster's nodes, "
        f"{cluster.text}: ask for fewer, or add nodes with both"
    )
