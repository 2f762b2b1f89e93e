"""Work in plain tasks, in processes that Ray starts for them.

>>> dict(run_tasks(abs, [-1, 2], cpus=1))  # doctest: +SKIP
{2: 2, -1: 1}
"""

from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import NoReturn, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from cluster.lines import Lines, LineSender
from cluster.session import check_room, is_open

Item = TypeVar("Item")
Result = TypeVar("Result")


ALONE = {"env_vars": {"RAP_FRESH_PROCESS": "1"}}
"""An environment of its own: Ray gives a used process to any other task, but only of the same environment."""

RETRIES = 3
"""How often work is begun again after the death of the process that did it."""


class PoolError(RuntimeError):
    """Work was given up because the processes that did it kept dying."""


class LostError(PoolError):
    """What was kept for all is gone, with the process that kept it."""


def run_tasks(
    function: Callable[..., Result],
    items: Iterable[Item],
    *,
    cpus: float,
    gpus: float = 0,
    fresh: bool | Callable[[Item], bool] = True,
    in_flight: int = 64,
    say: Callable[[str], None] | None = None,
) -> Generator[tuple[Item, Result], None, None]:
    """Call a function for every item in processes of their own; yield (item, result) as they complete.

    A ``fresh`` process is one that no other call has used: what a call leaves (threads, random state) cannot
    reach another. Otherwise a call may follow another, which spares it the imports; on GPUs, whose memory is
    given back when a process ends, it never does. ``fresh`` may be a question, asked of each item. At most
    ``in_flight`` items are submitted at once; how many run is up to ``cpus`` and ``gpus``. A call whose process
    died is begun again up to RETRIES times. With ``say`` the function gets another argument, a function that has
    the driver say a line, one a second at most.

    Raises the function's own exception as itself, and PoolError, which names the item, when its
    processes keep dying.
    """
    name = getattr(function, "__name__", "task")
    check_room(name, cpus=cpus, gpus=gpus)
    shared = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_call)
    alone = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, max_calls=1, runtime_env=ALONE)(_call)
    source = iter(items)
    running: dict[ObjectRef, Item] = {}
    lines = Lines(say) if say else None
    telling = [lines.sender] if lines else []
    try:
        while True:
            for item in islice(source, in_flight - len(running)):
                is_fresh = gpus > 0 or (fresh(item) if callable(fresh) else fresh)
                running[(alone if is_fresh else shared).remote(function, item, *telling)] = item
            if not running:
                return
            awaited = lines.awaited if lines else []
            done, _ = ray.wait([*awaited, *running])
            for ref in done:
                if lines and ref in awaited:
                    lines.read()
                    continue
                item = running.pop(ref)
                yield item, _get(ref, f"{name} of {item!r}")
    finally:
        for ref in running:
            if is_open():
                ray.cancel(ref, force=True)
        if lines:
            lines.close()


def _call(function: Callable[..., Result], item: object, *tell: LineSender) -> Result:
    return function(item, *tell)


def _get(ref: "ObjectRef[Result]", doing: str) -> Result:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise_cause(error, doing)
    except RayError as death:
        raise PoolError(f"gave up {doing}: the processes that worked on it died, at last of: {death}") from death


def raise_cause(error: RayTaskError, doing: str) -> NoReturn:
    """Raise a worker's exception as itself; what was being done and the worker's trace are its cause."""
    context = PoolError(f"{doing} failed; on the worker:\n{error}")
    raise error.cause from context
