"""Placement: how the resources of a cluster are divided among generators, train workers, trials and evaluations."""

from contextlib import ExitStack
from dataclasses import dataclass

from cluster.session import Cluster, PlacementError, session
from pipeline.command import WorkersConfig
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


class Session:
    """A Ray session that starts when it is first needed: a run that is complete never starts one."""

    def __init__(self, config: WorkersConfig, recipe: Recipe, stack: ExitStack) -> None:
        self.config, self.recipe, self.stack = config, recipe, stack
        self.found: Workers | None = None

    def __call__(self) -> Workers:
        if self.found is None:
            cluster = self.stack.enter_context(session(cpus=self.config.cpus))
            self.found = divide(cluster, self.config, self.recipe)
        return self.found


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
    """Divide a cluster. On CPUs the train workers come first and generators fill the rest; with GPUs each has one.

    A single CPU or GPU is shared by halves. Raises PlacementError where CUDA is asked for and there is no GPU.
    """
    place, trainers = place_for_tasks(cluster, config), recipe.train.workers
    if place.device == "cuda":
        generators = config.generators or max(1, int(cluster.gpus) - trainers)
        share = min(1.0, cluster.gpus / (generators + trainers))
        loop = LoopWorkers(
            generators=generators, generator_cpus=1, generator_gpus=share, trainer_cpus=1, trainer_gpus=share
        )
        return Workers(**vars(place), loop=loop)
    left = cluster.cpus - trainers * recipe.train.threads
    generators = config.generators or max(1, int(left // recipe.attack.threads))
    # Actors that take turns, or more of them than CPUs, get equal shares: a CPU here is a place, not a limit.
    share = min(1.0, cluster.cpus / (generators + trainers))
    loop = LoopWorkers(
        generators=generators, generator_cpus=share, generator_gpus=0, trainer_cpus=share, trainer_gpus=0
    )
    return Workers(**vars(place), loop=loop)
