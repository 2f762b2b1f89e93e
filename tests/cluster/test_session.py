import os
import signal
import subprocess
import sys
import threading

import pytest

from cluster.session import Interrupted, PlacementError, check_room, session

WAITING = """
import sys, threading
from cluster.pool import Pool
from cluster.session import Interrupted, session

class Waiter:
    def wait(self, number):
        threading.Event().wait()

def announce(number):
    print("waiting", flush=True)
    return (number,)

try:
    with session(cpus=1) as cluster:
        try:
            with Pool(Waiter, size=1, cpus=1, name="waiters") as pool:
                list(pool.map("wait", [1], payload=announce))
        finally:
            print("cleaned up", cluster.cpus, cluster.gpus, cluster.is_local, flush=True)
except Interrupted as stop:
    print(stop, flush=True)
with session(cpus=2) as cluster:
    print(cluster.cpus)
sys.exit(143)
"""


@pytest.mark.ray
def test_sigterm_is_an_orderly_stop_and_another_session_may_follow():
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WAITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert output == "cleaned up 1.0 0 True\nstopped by SIGTERM\n2.0\n"
    assert errors == ""
    assert process.returncode == 143


@pytest.mark.ray
def test_a_session_inside_another_joins_it_and_restores_the_handler(ray_session):
    handler = signal.getsignal(signal.SIGTERM)
    with session() as cluster:
        assert cluster == ray_session
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert signal.getsignal(signal.SIGTERM) is handler
    check_room("a test", count=2, cpus=1)
    with pytest.raises(
        PlacementError, match=r"a test needs 3 x \(1 CPUs, 0 GPUs\), but this machine has 1 x \(2 CPUs, 0 GPUs\)"
    ):
        check_room("a test", count=3, cpus=1)


@pytest.mark.ray
def test_a_second_sigterm_does_not_interrupt_the_clean_up(ray_session):
    cleaned = []

    def run() -> None:
        with session():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
                cleaned.append(True)

    with pytest.raises(Interrupted, match="SIGTERM"):
        run()
    assert cleaned == [True]


@pytest.mark.ray
def test_a_plain_ctrl_c_stays_one(ray_session):
    with pytest.raises(KeyboardInterrupt) as caught, session():
        raise KeyboardInterrupt
    assert type(caught.value) is KeyboardInterrupt


@pytest.mark.ray
def test_a_session_may_be_opened_in_a_thread(ray_session):
    clusters = []

    def run() -> None:
        with session() as cluster:
            clusters.append(cluster)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert clusters == [ray_session]


def test_a_size_for_a_running_cluster_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(PlacementError, match="leave cpus unset"), session(cpus=3):
        pass
