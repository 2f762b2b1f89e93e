"""Whether Ray can be reached: asked before a session joins a cluster, and again and again while it works there."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

PATIENCE = 5.0
"""Seconds for an answer to a question that is asked again: a server may be too busy for one."""
PAUSE = 1.0
"""Seconds from one question to the next: a process that touches the objects of a raylet that died is ended by Ray."""
LOST = 30.0
"""Seconds without an answer after which Ray counts as lost: long enough for a head that is started again, and well
below the 60 s after which Ray would end this process. As long is waited where a question is asked only once."""

# What a client says first in HTTP/2, which all of Ray's servers speak, and the kind of the frame that answers it.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
SETTINGS = 4

STUCK = 25.0
"""Seconds after which a main thread that has not come back from a call into Ray ends with its process, as it would by
Ray's own hand 60 s after the loss, in words of Ray's."""

Address = tuple[str, int]


def parse_address(text: str) -> Address | None:
    """Host and port of "host:port", with or without a scheme before it; None for anything else."""
    host, _, port = text.rpartition("://")[2].rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() else None


def answers(address: Address, patience: float) -> bool:
    """Whether a server of Ray's answers there within so many seconds: another program does not, nor a frozen one whose
    port is open.

    Raises ConnectionRefusedError where nothing listens.
    """
    try:
        with socket.create_connection(address, patience) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return True
            connection.sendall(GREETING)
            return connection.recv(9, socket.MSG_WAITALL)[3:4] == bytes((SETTINGS,))
    except ConnectionRefusedError:
        raise
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Server:
    """A process of Ray's without which nothing goes on."""

    name: str
    address: Address
    returns: bool
    """Whether another may take its place: where nothing listens any more, it is then not yet lost."""

    @property
    def loss(self) -> str:
        """What is to be said once it is lost."""
        return (
            f"Ray was lost: {self.name} no longer answers. What was committed is kept; once Ray runs again, the same "
            "command resumes from there"
        )

    def lives(self, patience: float) -> bool | None:
        """True where it answers in time, False where it is gone for good, None where that is not to be told yet."""
        try:
            return answers(self.address, patience) or None
        except ConnectionRefusedError:
            return None if self.returns else False


class Watch:
    """Looks after a session from a thread of its own, and interrupts the main thread once Ray is lost.

    It does so by SIGTERM, whose handler must be that of the session. Where that thread is in a call into Ray that no
    signal ends, the process is ended, with one message and exit code 1.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self.lost: Server | None = None
        """The server that is lost, of those that are watched."""
        self._servers = servers
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def look_now(self) -> None:
        """What does not answer now is lost."""
        self.lost = self.lost or next((server for server in self._servers if not server.lives(LOST)), None)

    def _look(self) -> None:
        heard = {server: time.monotonic() for server in self._servers}
        while not self._is_over.wait(PAUSE):
            for server in self._servers:
                lives = server.lives(PATIENCE)
                if lives:
                    heard[server] = time.monotonic()
                elif (lives is False or time.monotonic() - heard[server] > LOST) and not self._is_over.is_set():
                    self.lost = server
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                    if not self._is_over.wait(STUCK):
                        print(f"error: {server.loss}", file=sys.stderr, flush=True)
                        os._exit(1)
                    return
