"""A session on Ray: connect to the running cluster or start a local one, and stop in good order.

>>> with session(cpus=2) as cluster:  # doctest: +SKIP
...     print(cluster.cpus, cluster.gpus)
2 0
"""

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.util.client import ray as client

from cluster.imports import import_environment
from cluster.machines import Cluster, read_cluster
from cluster.reach import LOST, Server, Watch, parse_address

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
    # Workers of a local Ray compete like any other program; at Ray's 15 they starve beside one that computes.
    "RAY_worker_niceness": "0",
    # Ctrl-C ends a search like everything else, by KeyboardInterrupt; and no files of Tune's own for TensorBoard, since
    # of a trial it knows only that it ended.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # With the old output, verbose=0 prints nothing; the new one prints its configuration all the same.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Seconds between snapshots of a search, that is, what a killed one repeats; Ray's own choice is 10 or more.
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
}
"""Defaults that the environment may override; set before Ray starts, since its processes inherit them."""


class PlacementError(ValueError):
    """What was asked for cannot be had: no Ray, no such device, more workers than fit, or a cluster of another size."""


class SessionLostError(RuntimeError):
    """Ray went away in the middle. What was committed is there."""


class Interrupted(KeyboardInterrupt):
    """SIGTERM arrived. Like Ctrl-C, it passes every ``except Exception`` and runs every ``finally``."""


@contextmanager
def session(*, cpus: int | None = None) -> Iterator[Cluster]:
    """Run on the cluster that RAY_ADDRESS names (as in ``ray job submit``), or on a quiet local one.

    ``cpus`` limits a local cluster; unset, it has the machine's. Inside another session, this one
    joins it. SIGTERM stops the main thread like Ctrl-C, once, so that the clean-up that it starts is
    not interrupted by a second one; the block is then left by Interrupted. (Inside the block it may
    still be a plain KeyboardInterrupt: a signal during a call into Ray comes out of it as that.)

    Raises PlacementError when no Ray can be had, or ``cpus`` is given for a cluster that runs already, and
    SessionLostError when Ray is lost while the block runs.
    """
    address = _cluster_address()
    if address and cpus is not None:
        raise PlacementError(
            f"cpus is {cpus}, but RAY_ADDRESS names a running cluster ({address}), whose size is its own: "
            "leave cpus unset, or unset RAY_ADDRESS to start a local cluster"
        )
    joins = ray.is_initialized()
    if address and not joins:
        _check_address(address)
    before = signal.getsignal(signal.SIGTERM)
    stop = _Stop()
    try:
        if not joins:
            _connect(address, cpus)
        # After ray.init, which installs a handler of its own.
        _set_sigterm(stop)
        with _watched(address):
            yield describe()
    except (KeyboardInterrupt, SessionLostError) as error:
        if stop.is_asked:  # Ray, too, where the signal goes to a group of processes, as that of `timeout` and of Slurm
            raise Interrupted("stopped by SIGTERM") from error
        raise
    finally:
        if not joins:
            ray.shutdown()
        _set_sigterm(before)


def describe() -> Cluster:
    """The cluster of the session that is open."""
    return read_cluster(is_local=_cluster_address() is None)


def is_open() -> bool:
    """Whether there is a Ray to ask: once it is lost, a call into it would not come back."""
    return ray.is_initialized() and (_watch is None or _watch.lost is None)


def check_room(what: str, *, count: int = 1, cpus: float, gpus: float = 0) -> None:
    """Raise PlacementError when a cluster can never hold ``count`` workers: they would wait for ever."""
    cluster = describe()
    if not cluster.is_unlimited and cluster.room(cpus=cpus, gpus=gpus) < count:
        raise PlacementError(
            f"{what} needs {count} x ({cpus:g} CPUs, {gpus:g} GPUs), but "
            f"{'this machine' if cluster.is_local else 'the cluster'} has {cluster.text}: ask for fewer or smaller "
            "workers, or run on a larger cluster"
        )


def _cluster_address() -> str | None:
    """The cluster that RAY_ADDRESS names; None for a Ray of this process's own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def _connect(address: str | None, cpus: int | None) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    level = logging.getLogger().getEffectiveLevel()
    is_verbose = level <= logging.INFO  # the caller asked for more than warnings
    options: dict[str, Any] = {"logging_level": level if is_verbose else "ERROR", "log_to_driver": is_verbose}
    if environment := import_environment(is_local=address is None):
        options["runtime_env"] = environment
    if address is None:
        # A local cluster asks for a token. Without one Ray would write ~/.ray/auth_token, which switches
        # authentication on for clusters that have nothing to do with this project. One that is there is Ray's choice,
        # which a process that has had a cluster of its own before does not read again.
        if not (os.environ.get("RAY_AUTH_TOKEN_PATH") or Path("~/.ray/auth_token").expanduser().exists()):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises a dozen types, and Exception itself
        where = "no local Ray could be started" if address is None else f"RAY_ADDRESS {address} could not be joined"
        raise PlacementError(f"{where}: {' '.join(str(error).split())}{_remedy(error)}") from error


def _remedy(error: Exception) -> str:
    if "AF_UNIX" in str(error):
        return "; set RAY_TMPDIR to a folder with a short path, such as /tmp, for Ray's sockets"
    return ""


def _check_address(address: str) -> None:
    """Raise PlacementError for an address at which Ray would wait for minutes, or that is not a cluster's own."""
    if address == "auto":
        return
    remedy = "name one that runs, such as 10.0.0.1:6379, or unset RAY_ADDRESS to start a local Ray"
    if address.startswith(("http://", "https://")):
        raise PlacementError(
            f"RAY_ADDRESS is {address}, to which `ray job submit` sends jobs; work itself joins a cluster at the port "
            f"of its head: {remedy}"
        )
    server = parse_address(address)
    if server is None:
        raise PlacementError(f"RAY_ADDRESS is {address!r}, which is no host:port: {remedy}")
    if not Server(name="the head", address=server, returns=False).lives(LOST):
        raise PlacementError(f"no Ray answers at {address}, which RAY_ADDRESS names: {remedy}")


def _servers(address: str | None) -> list[Server]:
    """What a session cannot do without: the cluster's head, and the process by which this one takes part in it."""
    context = ray.get_runtime_context()
    if client.is_connected():
        if address is None or not address.startswith("ray://"):
            return []  # of a client that whoever called has connected, whose server nothing names
        where = {"the head": parse_address(address)}
    else:
        here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        where = {
            "the head": parse_address(context.gcs_address),
            "the raylet of this machine": (here["NodeManagerAddress"], here["NodeManagerPort"]),
        }
    return [
        Server(name=name, address=server, returns=address is not None and name == "the head")
        for name, server in where.items()
        if server is not None
    ]


_watch: Watch | None = None


@contextmanager
def _watched(address: str | None) -> Iterator[None]:
    """Inside, a Ray that is lost ends the main thread's work; a session in another thread is not watched, and one
    inside another is watched by that.

    Raises SessionLostError in its place.
    """
    global _watch
    if _watch is not None:
        yield
        return
    is_main = threading.current_thread() is threading.main_thread()
    _watch = watch = Watch(_servers(address) if is_main else ())
    watch.start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, Exception):
            watch.look_now()  # work may fail of it before the watch has seen it
        if watch.lost is None:
            raise
        raise SessionLostError(watch.lost.loss) from error
    finally:
        watch.stop()
        _watch = None


class _Stop:
    """The handler of SIGTERM: interrupts the main thread the first time, and once more where Ray is lost meanwhile."""

    def __init__(self) -> None:
        self.is_asked = False
        """Whether anyone but the watch has sent it."""
        self._is_told = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        is_lost = _watch is not None and _watch.lost is not None
        if is_lost and not self._is_told:
            self._is_told = True
            raise Interrupted("Ray was lost")
        if not is_lost and not self.is_asked:
            self.is_asked = True
            raise Interrupted("stopped by SIGTERM")


def _set_sigterm(handler: object) -> None:
    # Python allows signal handlers in the main thread only; None stands for one that C code installed.
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]
