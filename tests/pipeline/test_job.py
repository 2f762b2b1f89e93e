"""The command as a job on a running head: the same bytes as on this machine alone."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from commands import TINY, last_version, results_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROJECT = Path(__file__).parents[2]
PATIENCE = 120  # seconds for a head to start, or to end


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(url: str, log: Path) -> None:
    """Ask until the head answers."""
    for _ in range(PATIENCE):
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:
            time.sleep(1)
        else:
            return
    pytest.fail(f"no head after {PATIENCE} s:\n{log.read_text()}")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head of two CPUs beside whatever else runs on this machine; its dashboard's address."""
    port, dashboard, agent, client, metrics = free_ports(5)
    flags = {
        "port": port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "metrics-export-port": metrics,
        "num-cpus": 2,
        "object-store-memory": 300_000_000,
    }
    program = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as output:
        started = subprocess.Popen(
            [*program, *(f"--{name}={value}" for name, value in flags.items())],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        try:
            wait_for(f"http://127.0.0.1:{dashboard}/api/jobs/", log)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            started.terminate()
            started.wait(PATIENCE)


def submit(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``ray job submit`` as the README says; waits for the job's end."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_API_SERVER_ADDRESS": address}
    program = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--working-dir", "."]
    return subprocess.run(
        [*program, "--", sys.executable, "-m", "pipeline.run", *arguments],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_a_job_publishes_the_bytes_of_the_command(head: str, finished: tuple[Path, str], tmp_path: Path) -> None:
    flags = [f"--{name}={value}" for name, value in TINY.items() if name != "workers.cpus"]
    done = submit(head, *flags, "--root", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AutoAttack standard" in done.stdout
    assert last_version(tmp_path) == last_version(finished[0])
    ours, theirs = results_of(tmp_path), results_of(finished[0])
    assert (ours["robust"], ours["undefended"]) == (theirs["robust"], theirs["undefended"])


def test_a_job_with_bad_input_fails_with_its_message(head: str, tmp_path: Path) -> None:
    done = submit(head, "mnist", "--data.root", str(tmp_path / "nowhere"), "--root", str(tmp_path / "root"))
    assert done.returncode != 0
    assert "error: " in done.stdout
    assert str(tmp_path / "nowhere") in done.stdout
    assert not (tmp_path / "root").exists()
