"""One training run on Ray Train: a loop on one or several workers, started again when a worker dies."""

import logging
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.exceptions import RayError
from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from torch.distributed import DistError

from cluster import tasks
from cluster.session import check_room, describe, is_open
from cluster.tasks import PoolError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainContext:
    """What the loop knows about its place among the train workers."""

    rank: int
    """This worker's number, 0 to world - 1."""
    world: int
    """Number of train workers."""
    device: str
    """Where this worker computes, such as cpu or cuda:0."""
    report: Callable[[dict[str, float]], None]
    """Hand metrics to Ray Train. Every rank calls it as often as the others, for it waits for all of them;
    about 0.1 s a call, so once a round at most."""


Loop = Callable[[TrainContext, dict[str, Any]], None]


class TrainingFailed(PoolError):
    """Training was given up because its processes kept dying."""


def run_training(
    loop: Loop,
    config: Mapping[str, Any],
    *,
    workers: int,
    cpus: float,
    gpus: float = 0,
    storage: Path,
    name: str,
) -> None:
    """Run ``loop(context, config)`` on every train worker until it returns; may be called in any thread.

    torch.distributed is set up: gloo between CPUs, nccl between GPUs. When a train worker or Ray's
    controller dies, all workers start the loop again, up to RETRIES times: the loop finds its
    place from its own files. ``storage`` is an absolute path that all nodes share; Ray keeps notes
    there while it runs.

    Raises the loop's own exception as itself, not repeated; TrainingFailed when processes keep dying;
    ValueError when a local cluster has no room.
    """
    if workers < 1:
        raise ValueError(f"{name}: {workers} train workers; at least 1 is needed")
    check_room(name, count=workers, cpus=cpus, gpus=gpus)
    resources = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    scaling = ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources)
    starts = tasks.RETRIES + 1
    for start in range(1, starts + 1):
        try:
            return _fit(loop, config, scaling, storage, name)
        except (TrainingFailedError, RayError) as error:
            if own := _own_exception(error, workers):
                raise own from TrainingFailed(f"{name}: a train worker failed\n{error}")
            if start == starts:
                raise TrainingFailed(
                    f"{name}: gave up, a process died in each of {starts} starts; the last time: {error}"
                ) from error
            logger.warning("%s: a process died in start %d of at most %d; starting again", name, start, starts)


def _fit(loop: Loop, config: Mapping[str, Any], scaling: ScalingConfig, storage: Path, name: str) -> None:
    # A name of its own for every fit: Ray must not take this one for the continuation of an older one.
    attempt = f"{name}-{uuid.uuid4().hex[:8]}"
    trainer = _Trainer(
        _enter,
        train_loop_config={"loop": loop, "config": dict(config)},
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=scaling,
        run_config=RunConfig(
            name=attempt,
            storage_path=str(storage.absolute()),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        with _kept_sigint(), _no_leftovers():
            trainer.fit()
    finally:
        shutil.rmtree(storage / attempt, ignore_errors=True)


class _Trainer(TorchTrainer):
    """TorchTrainer without the actors that a local session has no use for.

    The cleaner of placement groups asks the dashboard whether the controller lives: without a dashboard it never
    learns, and every training waits 12 s for it at the end; `_no_leftovers` does its work. The other serves Ray Data's
    data sets, of which there are none.
    """

    def _create_default_callbacks(self) -> list:
        callbacks = super()._create_default_callbacks()
        if not describe().is_local:
            return callbacks
        useless = ("PlacementGroupCleanerCallback", "DatasetsCallback")
        return [callback for callback in callbacks if type(callback).__name__ not in useless]


def _enter(arguments: dict[str, Any]) -> None:
    """Runs on every train worker."""
    place = ray.train.get_context()
    context = TrainContext(
        rank=place.get_world_rank(),
        world=place.get_world_size(),
        device=str(get_device()),
        report=ray.train.report,
    )
    arguments["loop"](context, arguments["config"])


def _own_exception(error: Exception, workers: int) -> BaseException | None:
    """The exception that the loop itself raised; None when processes died, so that a new start may help."""
    if not isinstance(error, WorkerGroupError):
        return None
    # Ray up to 2.5x wraps the exception; later versions have it unwrapped.
    failures = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
    own = [failure for failure in failures if not type(failure).__module__.startswith("ray.")]
    if workers > 1:
        own = [failure for failure in own if not _is_echo(failure)]
    return own[0] if own else None


def _is_echo(failure: BaseException) -> bool:
    """Whether it may be what a worker sees of another's death: a collective that lost its peer."""
    return type(failure) is RuntimeError or isinstance(failure, DistError)


@contextmanager
def _no_leftovers() -> Iterator[None]:
    """What a failed training reserved is free for the next start.

    Where a train worker dies before its loop begins, or the controller dies, nobody gives their CPUs back, and another
    start would wait for them for ever. In a local session only this training makes placement groups meanwhile.
    """
    if not describe().is_local:  # where Ray's own cleaner does it
        yield
        return
    before = placement_group_table().keys()
    try:
        yield
    except (TrainingFailedError, RayError):
        # Without a session, which may just have ended, asking for the table would start another one.
        left = placement_group_table() if is_open() else {}
        for name, group in left.items():
            if name not in before and group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))
        raise


@contextmanager
def _kept_sigint() -> Iterator[None]:
    """Ctrl-C stays what it was: in the main thread fit() installs a handler and leaves it there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
