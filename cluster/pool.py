"""A supervised pool of actors: bounded in flight, repeated after deaths, replaced.

>>> with Pool(Squarer, size=2, cpus=1, name="squares") as pool:  # doctest: +SKIP
...     print(dict(pool.map("square", range(4))))
{1: 1, 0: 0, 2: 4, 3: 9}
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from cluster import tasks
from cluster.session import check_room, is_open
from cluster.tasks import PoolError, raise_cause, run_tasks

__all__ = ["Pool", "PoolError", "run_tasks"]

Item = TypeVar("Item")

PATIENCE = 60.0
"""Seconds without any result after which a pool says what it waits for."""

logger = logging.getLogger(__name__)


class _Host:
    """The actor: it builds the worker once and calls its methods."""

    def prepare(self, factory: Callable[[], object]) -> None:
        # Not in __init__: there an exception would look like the death of the process.
        self._worker = factory()

    def call(self, method: str, arguments: tuple) -> object:
        return getattr(self._worker, method)(*arguments)


@dataclass
class _Call:
    item: Any
    arguments: tuple
    deaths: int = 0
    """Of actors that had it in hand."""


@dataclass
class _Slot:
    """One place in the pool: an actor, which may still be starting, and its calls in order."""

    actor: Any
    started: ObjectRef
    is_ready: bool = False
    calls: dict[ObjectRef, _Call] = field(default_factory=dict)


class _Work:
    """Calls to make: those that must be made again first, then new ones, made only when they are asked for."""

    def __init__(self, source: Iterator[_Call]) -> None:
        self._source = source
        self._again: deque[_Call] = deque()
        self.is_exhausted = False

    def take(self) -> _Call | None:
        call = self._again.popleft() if self._again else next(self._source, None)
        self.is_exhausted = call is None
        return call

    def put_back(self, calls: list[_Call]) -> None:
        self._again.extendleft(reversed(calls))
        self.is_exhausted = False


class Pool:
    """A supervised pool of actors.

    ``worker`` is a picklable factory without arguments; each actor calls it once. An actor gets work
    only once it has started, so a pool works with as many as the cluster has room for, and grows when
    nodes arrive. A dead actor is replaced and what it had in hand is done again elsewhere.
    """

    def __init__(
        self,
        worker: Callable[[], object],
        *,
        size: int,
        cpus: float,
        gpus: float = 0,
        max_in_flight: int = 2,
        concurrency: int = 1,
        name: str,
    ) -> None:
        """Start ``size`` actors of ``cpus`` and ``gpus`` each.

        ``max_in_flight`` bounds the calls given to one actor: with 2 it never waits for the driver. ``concurrency`` is
        how many of them it works on at once, in threads. An item is begun again after the death of the actor that
        worked on it, up to RETRIES times.

        Raises ValueError when a number makes no sense or a local cluster has no room for one actor.
        """
        if size < 1 or max_in_flight < 1:
            raise ValueError(f"{name}: size is {size}, max_in_flight {max_in_flight}; both must be at least 1")
        check_room(name, cpus=cpus, gpus=gpus)
        self._host: Any = ray.remote(_Host).options(num_cpus=cpus, num_gpus=gpus, max_concurrency=concurrency)
        self._worker = worker
        self._name = name
        self._max_in_flight = max_in_flight
        self._failed_starts = 0
        self._busy = False
        self._slots = [self._spawn() for _ in range(size)]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(
        self,
        method: str,
        items: Iterable[Item],
        *,
        payload: Callable[[Item], tuple] | None = None,
    ) -> Generator[tuple[Item, Any], None, None]:
        """Call a method for every item and yield (item, result) as the calls complete, in any order.

        ``payload`` makes the arguments of an item's call when it is submitted; unset, the item is the
        argument. An exception of the method or of the factory is raised as itself, and not repeated.

        Raises PoolError, which names the item, when the actors that work on it keep dying, and
        RuntimeError when another ``map`` of this pool has not ended.
        """
        if self._busy:
            raise RuntimeError(f"{self._name}: one map at a time; exhaust or close the one that runs")
        self._busy = True
        work = _Work(_Call(item, (item,) if payload is None else payload(item)) for item in items)
        try:
            while True:
                self._feed(method, work)
                if work.is_exhausted and not any(slot.calls for slot in self._slots):
                    return
                yield from self._collect(method, work)
        finally:
            self._forget()
            self._busy = False

    def close(self) -> None:
        """End the actors at once; what they have in hand is lost."""
        while self._slots:
            slot = self._slots.pop()
            if is_open():
                ray.kill(slot.actor)

    def _spawn(self) -> _Slot:
        actor = self._host.remote()
        return _Slot(actor, started=actor.prepare.remote(self._worker))

    def _feed(self, method: str, work: _Work) -> None:
        """Submit until every actor that has started has enough, or there is no more work.

        A call that an actor may have died on has the next one for itself, so that another death is surely its own.
        """
        while slot := self._idlest():
            if (call := work.take()) is None:
                return
            if call.deaths and slot.calls:
                work.put_back([call])
                return
            slot.calls[slot.actor.call.remote(method, call.arguments)] = call

    def _idlest(self) -> _Slot | None:
        free = [
            slot
            for slot in self._slots
            if slot.is_ready
            and len(slot.calls) < self._max_in_flight
            and not any(call.deaths for call in slot.calls.values())
        ]
        return min(free, key=lambda slot: len(slot.calls), default=None)

    def _collect(self, method: str, work: _Work) -> Iterator[tuple[Any, Any]]:
        """Wait for something to happen; yield what was completed."""
        owners = {ref: slot for slot in self._slots for ref in slot.calls}
        owners |= {slot.started: slot for slot in self._slots if not slot.is_ready}
        done, _ = ray.wait(list(owners), timeout=PATIENCE)
        if not done:
            self._report_waiting()
        for ref in done:
            slot = owners[ref]
            if ref == slot.started:
                self._welcome(slot)
                continue
            call = slot.calls[ref]
            try:
                result = ray.get(ref)
            except RayTaskError as error:
                raise_cause(error, f"{self._name}: {method} of {call.item!r}")
            except RayError as death:
                yield from self._recover(slot, work, death)
            else:
                del slot.calls[ref]
                yield call.item, result

    def _welcome(self, slot: _Slot) -> None:
        try:
            ray.get(slot.started)
        except RayTaskError as error:
            raise_cause(error, f"{self._name}: the start of a worker")
        except RayError as death:
            self._failed_starts += 1
            if self._failed_starts > tasks.RETRIES:
                raise PoolError(
                    f"{self._name}: {self._failed_starts} actors in a row died while they started: {death}"
                ) from death
            self._replace(slot)
        else:
            self._failed_starts = 0
            slot.is_ready = True

    def _recover(self, slot: _Slot, work: _Work, death: RayError) -> Iterator[tuple[Any, Any]]:
        """Replace a dead actor; yield what it had completed, and put the rest back."""
        lost = []
        for ref, call in slot.calls.items():
            try:
                yield call.item, ray.get(ref)
            except RayTaskError as error:
                raise_cause(error, f"{self._name}: {call.item!r}")
            except RayError:
                lost.append(call)
        self._replace(slot)
        # Any of them: the answer of a completed call may be lost with its actor, so the first is not surely the one.
        for call in lost:
            call.deaths += 1
        worst = max(lost, key=lambda call: call.deaths)
        if worst.deaths > tasks.RETRIES:
            raise PoolError(
                f"{self._name}: gave up {worst.item!r} after {worst.deaths} actors died on it: {death}"
            ) from death
        work.put_back(lost)

    def _replace(self, slot: _Slot) -> None:
        # An actor that is only out of reach must not go on beside its successor.
        ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._spawn()

    def _report_waiting(self) -> None:
        started = sum(slot.is_ready for slot in self._slots)
        logger.warning(
            "%s: nothing completed for %g s; %d of %d actors have started, %d calls are in hand. "
            "Actors that have not started wait for free CPUs or GPUs.",
            *(self._name, PATIENCE, started, len(self._slots), sum(len(slot.calls) for slot in self._slots)),
        )

    def _forget(self) -> None:
        """Drop what is in hand, so that the next map starts with free actors."""
        for slot in self._slots:
            for ref in slot.calls:
                if is_open():
                    ray.cancel(ref)
            slot.calls.clear()
