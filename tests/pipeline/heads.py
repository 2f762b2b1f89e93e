"""A Ray head of the tests' own, and jobs for it."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ports import free_ports

PROJECT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
PATIENCE = 120  # seconds for a head to start, or to end


@dataclass(frozen=True)
class Head:
    """A head of two CPUs beside whatever else runs on this machine."""

    process: subprocess.Popen
    address: str
    environment: dict[str, str]
    """Of whoever submits: as on the head."""

    def kill(self) -> None:
        """As a machine that dies: nothing on it ends in good order."""
        _kill([*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)])

    def kill_driver(self, module: str) -> None:
        """Of a job that runs a module, and nothing else of it."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        drivers = [each for each in below if each.cmdline()[1:3] == ["-m", module]]
        assert drivers
        _kill(drivers)

    @contextmanager
    def submitted(self, name: str, *program: str) -> Iterator[subprocess.Popen[str]]:
        """``ray job submit`` as the README says, under a name of its own; it prints what the job prints, to its end."""
        patient = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "20"}}'
        flags = ["--submission-id", name, "--working-dir", ".", "--runtime-env-json", patient]
        with subprocess.Popen(
            [RAY, "job", "submit", *flags, "--", sys.executable, "-m", *program],
            cwd=PROJECT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
        ) as job:
            yield job

    def run(self, name: str, *program: str) -> tuple[int, str]:
        """The exit code and the lines of a job that is waited for."""
        with self.submitted(name, *program) as job:
            said, _ = job.communicate()
            return job.returncode, said

    def stop(self, name: str) -> None:
        """``ray job stop``, and no wait for it."""
        subprocess.run(
            [RAY, "job", "stop", "--no-wait", name], cwd=PROJECT, env=self.environment, check=True, capture_output=True
        )


def _kill(processes: list[psutil.Process]) -> None:
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(processes, PATIENCE)


def is_open(url: str, token: str | None = None) -> bool:
    """Whether a head answers whoever has this token."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for(url: str, token: str | None, log: Path) -> None:
    """Ask until the head answers."""
    for _ in range(PATIENCE):
        if is_open(url, token):
            return
        time.sleep(1)
    pytest.fail(f"no head after {PATIENCE} s:\n{log.read_text()}")


@contextmanager
def running_head(log: Path, token: str | None = None) -> Iterator[Head]:
    """A head that asks for the token, if there is one."""
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
    address = f"http://127.0.0.1:{dashboard}"
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    # Without the drain, which waits 30 s for work that is over.
    environment = {**os.environ, **known, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    with log.open("w") as output:
        started = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--disable-usage-stats"]
            + [f"--{name}={value}" for name, value in flags.items()],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        try:
            wait_for(f"{address}/api/jobs/", token, log)
            yield Head(started, address, {**environment, "RAY_API_SERVER_ADDRESS": address})
        finally:
            started.terminate()
            started.wait(PATIENCE)
