import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

import cluster.lines
import cluster.tasks
from cluster.lines import LineSender
from cluster.pool import Pool, PoolError, run_tasks
from cluster.refs import Ref, put

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


class Worker:
    """Squares numbers, and can be told to fail or to die."""

    def square(self, number: int) -> int:
        return number * number

    def fail(self, number: int) -> int:
        raise ValueError(f"{number} is not allowed")

    def die_on_three(self, number: int, deaths: Path, count: int) -> int:
        """Kill this process on the first ``count`` calls for number 3, which leave a file each."""
        before = len(list(deaths.iterdir()))
        if number == 3 and before < count:
            (deaths / str(before)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    def total(self, weights: list[Ref[np.ndarray]], number: int) -> float:
        return float(weights[0].get().sum()) + number


class Broken:
    def __init__(self) -> None:
        raise ValueError("the worker cannot be built")


class Doomed:
    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def make_pool(worker: Callable[[], object] = Worker, *, size: int = 1, cpus: float = 0.5) -> Pool:
    return Pool(worker, size=size, cpus=cpus, name="test")


@pytest.fixture(scope="module", autouse=True)
def _one_more_try() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.tasks, "RETRIES", 1)
        yield


@pytest.fixture(scope="module")
def pool(ray_session) -> Iterator[Pool]:
    """One pool for all tests: what a test does to it must not disturb the next."""
    with make_pool(size=2) as pool:
        yield pool


def test_every_item_comes_back_once(pool):
    assert sorted(pool.map("square", range(20))) == [(n, n * n) for n in range(20)]
    assert list(pool.map("square", [])) == []


def test_an_actor_killed_in_the_middle_loses_nothing(pool, tmp_path):
    results = pool.map("die_on_three", range(12), payload=lambda n: (n, tmp_path, 1))
    assert sorted(results) == [(n, n * n) for n in range(12)]
    assert len(list(tmp_path.iterdir())) == 1


def test_an_item_that_kills_every_actor_is_named(pool, tmp_path):
    with pytest.raises(PoolError, match="gave up 3 after 2 actors died on it"):
        list(pool.map("die_on_three", range(12), payload=lambda n: (n, tmp_path, 100)))
    assert len(list(tmp_path.iterdir())) == 2


def tell_twice(number: int, tell: Callable[[str], None]) -> int:
    tell(f"{number} begun")
    tell(f"{number} done")
    return number * number


def test_tasks_tell_the_driver_what_they_do(monkeypatch):
    monkeypatch.setattr(cluster.lines, "PAUSE", 0.0)
    said = []
    assert dict(run_tasks(tell_twice, [2, 3], cpus=1, say=said.append)) == {2: 4, 3: 9}
    for number in (2, 3):
        assert [line for line in said if line.startswith(str(number))] == [f"{number} begun", f"{number} done"]


def test_a_task_tells_nothing_more_within_a_pause(monkeypatch):
    monkeypatch.setattr(cluster.lines, "PAUSE", float("inf"))
    said = []
    assert dict(run_tasks(tell_twice, [2], cpus=1, say=said.append)) == {2: 4}
    assert said == ["2 begun"]


def kill_the_listener(number: int, tell: LineSender) -> int:
    ray.kill(tell.queue)
    tell("nobody hears this")
    return number


def test_work_goes_on_without_a_listener(monkeypatch):
    monkeypatch.setattr(cluster.lines, "PAUSE", 0.0)
    said = []
    assert dict(run_tasks(kill_the_listener, [2], cpus=1, say=said.append)) == {2: 2}
    assert not said


def test_an_exception_of_the_method_is_raised_as_itself_and_names_the_item(pool):
    with pytest.raises(ValueError, match=r"^7 is not allowed$") as caught:
        list(pool.map("fail", [7]))
    assert type(caught.value) is ValueError
    assert "fail of 7" in str(caught.value.__cause__)


def test_no_more_is_in_flight_than_allowed(pool):
    taken = []
    results = pool.map("square", (taken.append(n) or n for n in range(30)))
    for completed, _ in enumerate(results):
        assert len(taken) - completed <= 2 * 2
    assert len(taken) == 30


def test_a_pool_that_was_left_early_takes_new_work(pool):
    results = pool.map("square", range(100))
    next(results)
    with pytest.raises(RuntimeError, match="one map at a time"):
        next(pool.map("square", [1]))
    results.close()
    assert sorted(pool.map("square", [5, 6])) == [(5, 25), (6, 36)]


def test_stored_arrays_reach_every_call(pool):
    weights = put(np.ones(1000, np.float32))
    totals = pool.map("total", range(3), payload=lambda n: ([weights], n))
    assert sorted(totals) == [(0, 1000.0), (1, 1001.0), (2, 1002.0)]


def test_a_worker_that_cannot_be_built_says_why():
    with make_pool(Broken) as pool, pytest.raises(ValueError, match=r"^the worker cannot be built$"):
        list(pool.map("square", [1]))


def test_actors_that_keep_dying_at_their_start_are_given_up():
    with make_pool(Doomed) as pool, pytest.raises(PoolError, match="2 actors in a row died"):
        list(pool.map("square", [1]))


def test_a_pool_larger_than_the_machine_works_with_what_fits():
    with make_pool(size=4) as pool:
        assert len(list(pool.map("square", range(10)))) == 10


def test_an_actor_that_can_never_start_is_refused():
    with pytest.raises(ValueError, match=r"needs 1 x \(100 CPUs, 0 GPUs\)"):
        make_pool(cpus=100)


def test_a_pool_without_actors_is_refused():
    with pytest.raises(ValueError, match="size is 0"):
        make_pool(size=0)


def process_of(_: int) -> int:
    return os.getpid()


def die_in_task(arguments: tuple[int, Path, int]) -> int:
    return Worker().die_on_three(*arguments)


def test_every_task_has_a_fresh_process():
    processes = dict(run_tasks(process_of, range(2), cpus=1))
    assert len(set(processes.values())) == 2


def test_tasks_that_need_none_share_processes():
    processes = dict(run_tasks(process_of, range(20), cpus=1, in_flight=2, fresh=False))
    assert len(processes) == 20
    assert len(set(processes.values())) < 20


def test_a_fresh_process_has_not_served_tasks_that_need_none():
    """Ray would give it to them, and a process that had served others to this one."""
    tasks = run_tasks(process_of, range(8), cpus=1, in_flight=1, fresh=lambda number: number in (3, 4))
    processes = dict(tasks)
    shared = {processes[number] for number in (0, 1, 2, 5, 6, 7)}
    assert len(shared) < 6
    assert len({processes[3], processes[4]} - shared) == 2


def test_a_killed_task_is_begun_again(tmp_path):
    assert [n for _, n in run_tasks(die_in_task, [(3, tmp_path, 1)], cpus=1)] == [9]


def test_a_task_that_kills_every_process_is_named(tmp_path):
    with pytest.raises(PoolError, match=r"gave up die_in_task of \(3, "):
        list(run_tasks(die_in_task, [(3, tmp_path, 100)], cpus=1))


def test_an_exception_of_a_task_is_raised_as_itself():
    with pytest.raises(ValueError, match=r"^invalid literal"):
        list(run_tasks(int, ["x"], cpus=1))


def test_tasks_are_submitted_lazily():
    taken = []
    results = run_tasks(abs, (taken.append(n) or n for n in range(10)), cpus=1, in_flight=2)
    next(results)
    results.close()
    assert len(taken) == 2
