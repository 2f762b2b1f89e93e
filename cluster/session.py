"""A session on Ray: connect to the running cluster or start a local one, and stop in good order.

>>> with session(cpus=2) as cluster:  # doctest: +SKIP
...     print(cluster.cpus, cluster.gpus)
2 0
"""

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import ray

from cluster.machines import Cluster, read_cluster

ENVIRONMENT = {
    # A train worker's report waits until the controller polls: 0.1 s a report instead of 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # A train worker that dies starts again from its checkpoint, whether it was told before or not.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Relative paths mean the same in a train worker or trial as in the driver.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Under `uv run`, Ray would build a new environment for every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # A worker without GPUs sees what the machine has; the device is always named explicitly.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ctrl-C ends a search like everything else, by KeyboardInterrupt; and no files for TensorBoard.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # With the old output, verbose=0 prints nothing; the new one prints its configuration all the same.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Seconds between snapshots of a search, that is, what a killed one repeats; Ray's own choice is 10 or more.
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
}
"""Defaults that the environment may override; set before Ray starts, since its processes inherit them."""


class PlacementError(ValueError):
    """The processors asked for cannot be had: no such device, more workers than fit, or a cluster of another size."""


class Interrupted(KeyboardInterrupt):
    """SIGTERM arrived. Like Ctrl-C, it passes every ``except Exception`` and runs every ``finally``."""


@contextmanager
def session(*, cpus: int | None = None) -> Iterator[Cluster]:
    """Run on the cluster that RAY_ADDRESS names (as in ``ray job submit``), or on a quiet local one.

    ``cpus`` limits a local cluster; unset, it has the machine's. Inside another session, this one
    joins it. SIGTERM stops the main thread like Ctrl-C, once, so that the clean-up that it starts is
    not interrupted by a second one; the block is then left by Interrupted. (Inside the block it may
    still be a plain KeyboardInterrupt: a signal during a call into Ray comes out of it as that.)

    Raises PlacementError when ``cpus`` is given for a cluster that runs already.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and cpus is not None:
        raise PlacementError(
            f"cpus is {cpus}, but RAY_ADDRESS names a running cluster ({address}), whose size is its own: "
            "leave cpus unset, or unset RAY_ADDRESS to start a local cluster"
        )
    before = signal.getsignal(signal.SIGTERM)
    joins = ray.is_initialized()
    stop = _Stop()
    try:
        if not joins:
            _connect(cpus)
        # After ray.init, which installs a handler of its own.
        _set_sigterm(stop)
        yield describe()
    except KeyboardInterrupt as error:
        if stop.is_asked:
            raise Interrupted("stopped by SIGTERM") from error
        raise
    finally:
        if not joins:
            ray.shutdown()
        _set_sigterm(before)


def describe() -> Cluster:
    """The cluster of the session that is open."""
    return read_cluster(is_local=not os.environ.get("RAY_ADDRESS"))


def check_room(what: str, *, count: int = 1, cpus: float, gpus: float = 0) -> None:
    """Raise PlacementError when a cluster can never hold ``count`` workers: they would wait for ever."""
    cluster = describe()
    if not cluster.is_unlimited and cluster.room(cpus=cpus, gpus=gpus) < count:
        raise PlacementError(
            f"{what} needs {count} x ({cpus:g} CPUs, {gpus:g} GPUs), but "
            f"{'this machine' if cluster.is_local else 'the cluster'} has {cluster.text}: ask for fewer or smaller "
            "workers, or run on a larger cluster"
        )


def _connect(cpus: int | None) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    # A local cluster asks for a token. Without one Ray would write ~/.ray/auth_token, which switches
    # authentication on for clusters that have nothing to do with this project.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)


class _Stop:
    """The handler of SIGTERM: interrupts the main thread the first time."""

    def __init__(self) -> None:
        self.is_asked = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if not self.is_asked:
            self.is_asked = True
            raise Interrupted("stopped by SIGTERM")


def _set_sigterm(handler: object) -> None:
    # Python allows signal handlers in the main thread only; None stands for one that C code installed.
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]
