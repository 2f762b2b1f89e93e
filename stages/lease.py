"""A lease: the right of one process to write somewhere, which ends with it.

In a directory it is a lock that dies with its process. On an object store it is an object that the owner renews by
compare-and-swap, and that another may take over once the server's own clock says that it is old.
"""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stages.storage import Storage
from stages.storage_errors import StorageError

RENEWED = 10.0  # seconds between renewals
EXPIRES = 45.0  # seconds without one after which the owner counts as gone: under a minute, several renewals


class TakenError(ValueError):
    """Another process holds the lease; the message names its host and process."""


class LeaseLostError(RuntimeError):
    """The lease was not renewed in time, and may be another's: whoever held it must stop."""


@dataclass
class Lease:
    """A lease that is held; `check` it now and then."""

    where: str
    lost: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise LeaseLostError where it is not held any more."""
        if self.lost.is_set():
            raise LeaseLostError(
                f"{self.where} could not be renewed for {EXPIRES:.0f} s, and another process may own it now; nothing "
                "committed is lost: run the same command again"
            )


@contextmanager
def lease(storage: Storage, key: str, *, wait: bool = False) -> Iterator[Lease]:
    """Hold the lease at a key while the block runs. Raises TakenError where another does, unless told to wait."""
    held = _locked(storage, key, wait) if storage.is_local else _renewed(storage, key, wait)
    with held as mine:
        yield mine


def _owner() -> dict[str, object]:
    return {"host": socket.gethostname(), "process": os.getpid()}


def _taken(where: str, content: bytes | str) -> TakenError:
    try:
        owner = json.loads(content)
        named = f"process {owner['process']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        named = "an unknown process"
    return TakenError(f"{where} is held by {named}; wait for it, or end it")


@contextmanager
def _locked(storage: Storage, key: str, wait: bool) -> Iterator[Lease]:
    path = storage.local(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}), and so nothing be owned there") from error
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            lock.seek(0)
            raise _taken(storage.location(key), lock.read()) from None
        lock.truncate(0)
        lock.write(json.dumps(_owner()))
        lock.flush()
        yield Lease(storage.location(key))


@contextmanager
def _renewed(storage: Storage, key: str, wait: bool) -> Iterator[Lease]:
    token, turn = secrets.token_hex(8), 0

    def content() -> bytes:  # another one each time, since some stores make the tag of the content
        return json.dumps({**_owner(), "token": token, "turn": turn}).encode()

    while not _take(storage, key, content()):
        if not wait:
            raise _taken(storage.location(key), storage.find(key) or b"")
        time.sleep(1.0)
    mine, done = Lease(storage.location(key)), threading.Event()

    def renew() -> None:
        nonlocal turn
        renewed = time.monotonic()
        while not done.wait(RENEWED):
            found, turn = _ours(storage, key, token), turn + 1
            try:
                if found is not None and (storage.swap(key, content(), tag=found) or storage.find(key) == content()):
                    renewed = time.monotonic()
            except StorageError:
                pass  # out of reach for a while; the time says when that is too long
            if time.monotonic() - renewed > EXPIRES - RENEWED:
                mine.lost.set()
                return

    thread = threading.Thread(target=renew, name=f"lease {key}", daemon=True)
    thread.start()
    try:
        yield mine
    finally:
        done.set()
        thread.join()
        if _ours(storage, key, token) is not None:
            storage.delete([key])


def _take(storage: Storage, key: str, content: bytes) -> bool:
    """Make the lease, or take over one that has expired by the server's clock; whether it is ours now."""
    if storage.create(key, content) or storage.find(key) == content:  # ours, where the answer to a first try was lost
        return True
    clock = f"{key}.{secrets.token_hex(4)}"
    storage.put(clock, b"")
    now, held = storage.head(clock), storage.head(key)
    storage.delete([clock])
    if now is None or held is None or (now["last_modified"] - held["last_modified"]).total_seconds() < EXPIRES:
        return False
    return storage.swap(key, content, tag=held["e_tag"]) or storage.find(key) == content


def _ours(storage: Storage, key: str, token: str) -> str | None:
    """The tag of the lease while it bears our token."""
    try:
        held = storage.head(key)
        found = storage.find(key)
    except StorageError:
        return None
    if held is None or found is None or json.loads(found).get("token") != token:
        return None
    return held["e_tag"]
