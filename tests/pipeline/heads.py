"""A Ray head of the tests' own, and jobs for it."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ports import free_ports

PROJECT = Path(__file__).parents[2]
PATIENCE = 120  # seconds for a head to start, or to end


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


@contextmanager
def running_head(log: Path) -> Iterator[str]:
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
    # Without the drain, which waits 30 s for work that is over.
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
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
