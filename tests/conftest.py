"""What several folders of tests share."""

import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

import pytest
import torch
from ports import free_ports
from s3_faults import FaultyS3
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.session import Cluster, session


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills",
        type=int,
        default=1,
        help="how often each kind of worker of a loop is killed, trials of a search, and in turn its head and driver",
    )


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """What --kills asks for."""
    return int(request.config.getoption("--kills") or 1)


def pytest_configure(config: pytest.Config) -> None:
    # What a test computes itself agrees to the bit with what recipes compute, which use one thread.
    torch.set_num_threads(1)
    # Else each of the hundreds of processes that tests start compiles the project anew, a fifth of its imports.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Ray copies its own data context, which warns of a field of its own.
    # Where the tests' S3 server will be, for all processes that are started before it is.
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    settings = {"ACCESS_KEY_ID": "tests", "SECRET_ACCESS_KEY": "not-for-messages", "REGION": "us-east-1"}
    os.environ.update({f"AWS_{name}": value for name, value in {**settings, "ENDPOINT_URL": address}.items()})
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:ray.data.context")


class Waiting(TorchDispatchMode):
    """The operations whose result the program waited for: a device answers them only once all before them are done."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        name, picked = operation.overloadpacket.__name__, arguments[1] if len(arguments) > 1 else None
        by_mask = name.startswith("index") and isinstance(picked, list) and picked[0].dtype == torch.bool
        if name in self.WAITING or by_mask:
            self.asked.append(name)
        return operation(*arguments, **(keywords or {}))


@pytest.fixture
def waiting() -> type[Waiting]:
    """A block that notes what of its operations would wait for a GPU."""
    return Waiting


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Cluster]:
    """One local Ray of 2 CPUs for all tests; a session that a test opens joins it."""
    with session(cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def s3_server() -> Iterator[FaultyS3]:
    """An S3 server in a process of its own, which forgets everything when the tests end, behind one that can fail."""
    (port,) = free_ports(1)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:  # it says where it runs once it does
            if "Running on" in line:
                break
        threading.Thread(target=server.stderr.read, daemon=True).start()  # else it waits once the pipe is full
        front = FaultyS3(os.environ["AWS_ENDPOINT_URL"], f"http://127.0.0.1:{port}")
        yield front
        front.close()
    finally:
        server.kill()
        server.communicate()


@pytest.fixture
def s3_bucket(s3_server: FaultyS3) -> str:
    """A bucket on that server, which the environment names."""
    with urllib.request.urlopen(urllib.request.Request(f"{s3_server.address}/tests-bucket", method="PUT")):
        return "s3://tests-bucket"
