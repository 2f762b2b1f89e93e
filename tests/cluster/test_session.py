import os
import signal
import subprocess
import sys
import threading

import pytest
import ray

from cluster.session import Interrupted, PlacementError, check_room, session

# The environment of scripts, which find the project where the tests do.
WITHOUT_A_CLUSTER = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
WITHOUT_A_CLUSTER["PYTHONPATH"] = os.pathsep.join(sys.path)

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
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WAITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=WITHOUT_A_CLUSTER,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert output == "cleaned up 1.0 0 True\nstopped by SIGTERM\n2.0\n"
    assert errors == ""
    assert process.returncode == 143


BOTH = """
import sys, threading
from cluster.session import Interrupted, session

try:
    with session(cpus=1):
        try:
            print("waiting", flush=True)
            threading.Event().wait()
        finally:
            threading.Event().wait()  # for Ray's answer, which never comes
except Interrupted as stop:
    print(stop, flush=True)
sys.exit(143)
"""


@pytest.mark.ray
def test_a_sigterm_that_ends_ray_as_well_is_told_as_what_it_is():
    process = subprocess.Popen(
        [sys.executable, "-c", BOTH],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=WITHOUT_A_CLUSTER,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate()
    assert output == "stopped by SIGTERM\n", errors
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


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray answers at 127.0.0.1:1, which RAY_ADDRESS names"),
        ("ray://127.0.0.1:1", "no Ray answers at ray://127.0.0.1:1"),
        (
            "http://127.0.0.1:8265",
            "to which `ray job submit` sends jobs; .* at the port of its head: name one that runs",
        ),
        ("the-head", "which is no host:port"),
        ("the-head:port", "which is no host:port"),
        ("nowhere.invalid:6379", "no Ray answers at nowhere.invalid:6379"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_refused_at_once(address, message, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever other tests have open
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(PlacementError, match=message), session():
        pass


FAILING = """
import os, sys
from cluster.session import PlacementError, session
try:
    with session(cpus=1):
        pass
except PlacementError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (100 * "x", "set RAY_TMPDIR to a folder with a short path, such as /tmp, for Ray's sockets"),
        ("file", "Not a directory"),
    ],
)
def test_a_local_ray_that_does_not_start_is_one_message(folder, message, tmp_path):
    (tmp_path / "file").touch()
    environment = WITHOUT_A_CLUSTER | {"RAY_TMPDIR": str(tmp_path / folder)}
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.startswith("no local Ray could be started: ")
    assert message in done.stdout
    assert done.stdout.count("\n") == 1
    assert (done.returncode, done.stderr) == (0, "")


LOSING = """
import psutil
import ray
from cluster.pool import Pool
from cluster.session import SessionLostError, session
from threading import Event

class Waiter:
    def wait(self, number):
        Event().wait()

def kill_the_head(number):
    for process in psutil.Process().children():
        if "gcs_server" in process.name():
            process.kill()
    return (number,)

if {own}:
    ray.init("local", num_cpus=1, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
try:
    with session(cpus=1), session(), Pool(Waiter, size=1, cpus=1, name="waiters") as pool:
        list(pool.map("wait", [1], payload=kill_the_head))
except SessionLostError as error:
    print(error)
ray.shutdown()
with session(cpus=1) as cluster:
    print(cluster.cpus)
"""


@pytest.mark.ray
@pytest.mark.parametrize("own", [False, True], ids=["of the session", "of whoever called"])
def test_a_ray_that_dies_ends_the_work_with_one_message_and_another_session_may_follow(own, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOSING.format(own=own)],
        capture_output=True,
        text=True,
        check=False,
        env=WITHOUT_A_CLUSTER | {"HOME": str(tmp_path)},  # where Ray writes the token of a cluster that was given none
    )
    assert done.stdout == (
        "Ray was lost: the head no longer answers. What was committed is kept; once Ray runs again, the same command "
        "resumes from there\n1.0\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
