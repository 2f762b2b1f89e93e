"""One owner at a time, on every kind of storage, and none left behind by a death."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from stages import lease as leases
from stages.lease import LeaseLostError, TakenError, lease
from stages.storage import Storage

HOLDER = """
import sys
from stages.lease import lease
from stages.storage import Storage
with lease(Storage.at(sys.argv[1]), "lock"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["directory", "s3"])
def place(request, tmp_path):
    return str(tmp_path) if request.param == "directory" else f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}"


def holder(place: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_with_the_owner_named(place):
    storage = Storage.at(place)
    owner = holder(place)
    with pytest.raises(TakenError, match=f"process {owner.pid} on {socket.gethostname()}"), lease(storage, "lock"):
        pass
    owner.communicate("", timeout=60)
    with lease(storage, "lock") as mine:
        mine.check()


def test_a_killed_owner_keeps_nobody_out(place, monkeypatch):
    storage = Storage.at(place)
    owner = holder(place)
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    if not storage.is_local:
        with pytest.raises(TakenError, match=f"process {owner.pid}"), lease(storage, "lock"):
            pass
        monkeypatch.setattr(leases, "EXPIRES", 0.0)
    with lease(storage, "lock"):
        pass


def test_a_lease_that_another_took_over_is_lost(tmp_path, monkeypatch):
    storage = Storage.at(f"memory://{tmp_path.name}")
    monkeypatch.setattr(leases, "RENEWED", 0.01)
    monkeypatch.setattr(leases, "EXPIRES", 0.02)
    with lease(storage, "lock") as mine:
        storage.put("lock", b'{"token": "theirs"}')
        assert mine.lost.wait(60)
        with pytest.raises(LeaseLostError, match="run the same command again"):
            mine.check()
    assert storage.get("lock") == b'{"token": "theirs"}'


def test_a_held_lease_is_renewed(tmp_path, monkeypatch):
    storage = Storage.at(f"memory://{tmp_path.name}")
    monkeypatch.setattr(leases, "RENEWED", 0.001)
    with lease(storage, "lock") as mine:
        before = storage.get("lock")
        while storage.get("lock") == before:
            pass
        mine.check()
    assert storage.find("lock") is None


def test_waiting_gets_the_lease_once_it_is_free(place):
    storage = Storage.at(place)
    owner = holder(place)
    ending = threading.Thread(target=owner.communicate, args=("",))
    ending.start()
    with lease(storage, "lock", wait=True):
        ending.join()
        assert owner.returncode == 0
