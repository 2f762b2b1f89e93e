"""A board: what is posted arrives, whoever waits is woken, and its loss is an error with a name."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray

from cluster.board import KEPT, Board, BoardLostError

pytestmark = pytest.mark.ray


@pytest.fixture
def board(ray_session: object):
    board = Board.open()
    yield board
    board.end()


def test_what_is_posted_is_there_for_whoever_waits_before_or_after(board: Board) -> None:
    era = board.begin("start")
    with ThreadPoolExecutor() as threads:
        early = threads.submit(board.wait, era, "round", 3)
        board.post(era, "round", 3, ["rows"])
        found = early.result(60)
    assert found is not None
    assert found.value == ["rows"]
    assert board.wait(era, "round", 3) == found


@ray.remote(max_calls=1, num_cpus=0)
def _posts(board: Board, era: int) -> None:
    board.post(era, "version", 0, "name", arrays={"weights": np.arange(100_000.0)})


def test_arrays_outlive_the_process_that_posted_them(board: Board) -> None:
    era = board.begin(None)
    ray.get(_posts.remote(board, era))
    found = board.wait(era, "version", 0)
    assert found is not None
    assert found.arrays is not None
    assert np.array_equal(found.arrays.get()["weights"], np.arange(100_000.0))


def test_another_era_wakes_who_waits_and_forgets_what_was_posted(board: Board) -> None:
    assert board.begin("first") == 1
    assert board.begun(0) == (1, "first")
    board.post(1, "round", 0, "old")
    with ThreadPoolExecutor() as threads:
        waiting, begun = threads.submit(board.wait, 1, "round", 1), threads.submit(board.begun, 1)
        assert board.begin("second") == 2
        assert waiting.result(60) is None
        assert begun.result(60) == (2, "second")
    board.post(1, "round", 5, "from the first")
    board.post(2, "round", 0, "new")
    found = board.wait(2, "round", 0)
    assert found is not None
    assert found.value == "new"
    assert board.wait(1, "round", 5) is None


def test_closing_wakes_everyone_and_leaves_the_lines_to_be_read(board: Board) -> None:
    era = board.begin(None)
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(board.wait, era, "round", 0), threads.submit(board.begun, era)]
        for line in ({"round": 0}, {"round": 1}):
            board.tell(line)
        board.close()
        assert [each.result(60) for each in waiting] == [None, None]
    assert [board.line() for _ in range(3)] == [{"round": 0}, {"round": 1}, None]


def test_only_the_last_of_a_topic_are_kept(board: Board) -> None:
    era = board.begin(None)
    for number in range(20):
        board.post(era, "version", number, number)
    board.close()  # so that nobody waits for what is gone
    kept = [number for number in range(20) if board.wait(era, "version", number) is not None]
    assert kept == list(range(20 - KEPT, 20))


def test_a_lost_board_is_named_by_every_call(ray_session: object) -> None:
    board = Board.open()
    era = board.begin(None)
    begun = threading.Event()

    def wait() -> object:
        begun.set()
        return board.wait(era, "round", 0)

    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(wait)
        begun.wait(60)
        board.end()
        with pytest.raises(BoardLostError, match="is gone"):
            waiting.result(60)
    with pytest.raises(BoardLostError):
        board.begin(None)
