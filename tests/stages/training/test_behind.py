"""Work behind the computation: in order, complete at the end, and loud where it fails."""

import threading

import pytest
from tiny_runs import SCHEDULE, loop_config, published, setup_of

from stages.training import behind as module
from stages.training import rounds
from stages.training.behind import Behind
from stages.training.journal import Journal
from stages.training.rounds import run_serially


def test_work_is_done_in_its_order_and_all_of_it_before_the_end():
    done = []
    with Behind() as behind:
        for number in range(50):
            behind.submit(lambda number=number: done.append(number))
    assert done == list(range(50))


def test_it_goes_on_while_the_caller_does_something_else():
    caller, worker = threading.Event(), threading.Event()
    with Behind() as behind:
        future = behind.submit(lambda: (worker.set(), caller.wait(60)))
        assert worker.wait(60)
        assert not future.done()
        caller.set()


def test_an_error_is_raised_by_the_next_call_or_at_the_end():
    def fail() -> None:
        raise ArithmeticError("first")

    def work(after: int) -> None:
        with Behind() as behind:
            future = behind.submit(fail)
            future.exception(60)
            for _ in range(after):
                behind.submit(lambda: None)

    for after in (0, 1):
        with pytest.raises(ArithmeticError, match="first"):
            work(after)


def test_the_callers_own_error_passes_and_leaves_out_what_has_not_begun():
    done, begun, go = [], threading.Event(), threading.Event()

    def work() -> None:
        with Behind() as behind:
            behind.submit(lambda: (begun.set(), go.wait(60)))
            behind.submit(lambda: done.append(1))
            begun.wait(60)
            threading.Timer(0.05, go.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert done == []


def test_the_caller_is_never_far_ahead(monkeypatch):
    monkeypatch.setattr(module, "AHEAD", 2)
    waiting = []
    with Behind() as behind:
        for _ in range(20):
            behind.submit(lambda: None)
            waiting.append(len(behind._waiting))
    assert max(waiting) <= 3


def test_a_checkpoint_that_is_written_late_waits_for_no_version_that_came_after_it(tmp_path, monkeypatch):
    later, write, end = threading.Event(), Journal.write, rounds._Rounds._end_round

    def late(journal: Journal, line: dict) -> None:
        if line["round"] == 1:  # behind which the checkpoint of the first two rounds is written
            assert later.wait(timeout=100)
        write(journal, line)

    def watched(loop: rounds._Rounds, number: int, *rest: object) -> None:
        end(loop, number, *rest)  # pyright: ignore[reportArgumentType]
        if number == 2:
            later.set()

    wanted, setup = (setup_of(tmp_path / name, loop_config(schedule=SCHEDULE)) for name in ("prompt", "late"))
    run_serially(wanted)
    monkeypatch.setattr(Journal, "write", late)
    monkeypatch.setattr(rounds._Rounds, "_end_round", watched)
    loop = threading.Thread(target=run_serially, args=(setup,), daemon=True)
    loop.start()
    loop.join(timeout=100)
    assert not loop.is_alive()
    assert setup.is_complete
    assert published(setup) == published(wanted)
