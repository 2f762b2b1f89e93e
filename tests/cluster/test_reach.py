"""Whether Ray can be reached, asked of whatever may stand at an address."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cluster import reach
from cluster.reach import GREETING, SETTINGS, Address, Server, Watch, parse_address


@contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[tuple[Address, Callable[[], None]]]:
    """A server of one's own: its address, and how to end it; ``talk`` is what it does with each connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                talk(connection)

    thread = threading.Thread(target=serve)
    thread.start()

    def end() -> None:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()

    try:
        yield listener.getsockname(), end
    finally:
        if thread.is_alive():
            end()


def as_ray(connection: socket.socket) -> None:
    assert connection.recv(len(GREETING), socket.MSG_WAITALL) == GREETING
    connection.sendall(bytes((0, 0, 0, SETTINGS, 0, 0, 0, 0, 0)))


def as_a_web_server(connection: socket.socket) -> None:
    connection.recv(len(GREETING), socket.MSG_WAITALL)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def as_nobody(connection: socket.socket) -> None:
    connection.recv(len(GREETING) + 1, socket.MSG_WAITALL)


def server(address: Address, *, returns: bool = False) -> Server:
    return Server(name="the head", address=address, returns=returns)


@pytest.mark.parametrize(("talk", "lives"), [(as_ray, True), (as_a_web_server, None), (as_nobody, None)])
def test_a_server_is_known_by_what_it_answers(talk: Callable[[socket.socket], None], lives: bool | None) -> None:
    with listening(talk) as (address, _):
        assert server(address).lives(0.2) is lives


def test_a_server_that_is_busy_answers_whoever_is_patient() -> None:
    is_free = threading.Event()

    def as_a_busy_one(connection: socket.socket) -> None:
        is_free.wait(60)
        with contextlib.suppress(ConnectionError):  # whoever asked may have gone
            as_ray(connection)

    with listening(as_a_busy_one) as (address, _):
        assert server(address).lives(0.05) is None
        is_free.set()
        assert server(address).lives(60) is True


def test_where_nothing_listens_a_server_is_gone_unless_another_may_take_its_place() -> None:
    with listening(as_ray) as (address, end):
        end()
        assert server(address).lives(1) is False
        assert server(address, returns=True).lives(1) is None


def test_a_host_that_does_not_exist_does_not_answer() -> None:
    assert server(("nowhere.invalid", 6379)).lives(1) is None


class LostError(Exception):
    """What the handler of these tests raises."""


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise LostError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("returns", [False, True])
def test_a_watch_interrupts_the_main_thread_once_a_server_is_lost(
    returns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "PAUSE", 0.01)
    monkeypatch.setattr(reach, "LOST", 0.05)
    with listening(as_ray) as (address, end), raising_on_sigterm():
        head = server(address, returns=returns)
        watch = Watch([head])
        with pytest.raises(LostError):  # noqa: PT012 - the signal may come at any point after the end
            watch.start()
            end()
            threading.Event().wait(60)
        watch.stop()
        assert watch.lost == head


def test_a_watch_that_was_stopped_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "PAUSE", 0.01)
    with listening(as_ray) as (address, end):
        watch = Watch([server(address)])
        watch.start()
        watch.stop()
        end()
        assert watch.lost is None
        watch.look_now()
        assert watch.lost is not None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("head:6379", ("head", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("head", None),
        (":6379", None),
        ("head:port", None),
        ("", None),
    ],
)
def test_addresses_are_understood(text: str, address: Address | None) -> None:
    assert parse_address(text) == address


BLOCKED = """
import signal, socket, threading
from cluster import reach

reach.PAUSE = reach.STUCK = 0.01
signal.signal(signal.SIGTERM, lambda *_: None)  # as in a call that no signal ends
with socket.create_server(("127.0.0.1", 0)) as listener:
    address = listener.getsockname()
reach.Watch([reach.Server(name="the head", address=address, returns=False)]).start()
threading.Event().wait()
"""


def test_a_main_thread_that_does_not_come_back_ends_with_its_process() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False)
    assert done.stderr == (
        "error: Ray was lost: the head no longer answers. What was committed is kept; once Ray runs again, the same "
        "command resumes from there\n"
    )
    assert done.returncode == 1
