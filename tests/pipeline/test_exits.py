"""How a command ends: one message, and its exit code."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from evaluated_models import WAITING

from cluster.parcels import ParcelError
from cluster.session import Interrupted, PlacementError, SessionLostError
from cluster.tasks import PoolError
from pipeline.artifacts import ArtifactError
from pipeline.exits import ClaimedError, conduct, refusing
from pipeline.progress import Say
from stages.evaluation.verdict import AttackError
from stages.lease import LeaseLostError
from stages.numerics import DeviceMemoryError
from stages.storage_errors import StorageError
from stages.training.diverged import DivergedError
from stages.training.versions import VersionMismatchError
from stages.trajectories.ledger import LedgerError
from stages.trajectories.shards import AlteredShardError, MissingShardError


def conducted(error: BaseException, root: Path) -> int:
    def work(say: Say) -> str:
        raise error

    return conduct(work, root=str(root))


STOPPED = [
    SessionLostError,
    PoolError,
    ArtifactError,
    LedgerError,
    AlteredShardError,
    MissingShardError,
    VersionMismatchError,
    StorageError,
    LeaseLostError,
    AttackError,
    DeviceMemoryError,
    DivergedError,
]


@pytest.mark.parametrize("kind", STOPPED)
def test_what_goes_wrong_in_the_middle_is_one_message_and_exit_code_1(
    kind: type[Exception], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conducted(kind("what was found, and what to do"), tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: what was found, and what to do")
    assert said.count("\n") == 1
    assert ("the same command resumes from here" in said) == (kind is PoolError)


@pytest.mark.parametrize("kind", [PlacementError, ParcelError, ClaimedError])
def test_what_is_refused_before_work_is_one_message_and_exit_code_2(
    kind: type[Exception], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        conducted(kind("what was found, and what to do"), tmp_path)
    assert capsys.readouterr().err == "error: what was found, and what to do\n"


def test_a_disk_of_temporary_files_that_is_full_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    temporary, usage = tmp_path / "temporary", shutil.disk_usage
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=0 if path == temporary else 2**40))
    assert conducted(OSError(errno.ENOSPC, "No space left on device"), tmp_path) == 1
    assert f"error: the disk of {temporary} is full: free some space, or set TMPDIR; " in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "code"), [(KeyboardInterrupt, 130), (Interrupted, 143)])
def test_an_interrupt_ends_with_its_signal_s_exit_code(
    kind: type[BaseException], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conducted(kind(), tmp_path) == code
    assert "the same command resumes from here" in capsys.readouterr().out


def test_a_pipe_that_is_cut_ends_the_work_in_one_message(tmp_path: Path) -> None:
    script = (
        "import sys; from pipeline.exits import conduct\n"
        "def work(say):\n    while True: say('x' * 9999)\n"
        "sys.exit(conduct(work, root=sys.argv[1]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.readline()
        command.stdout.close()
        errors = command.stderr.read()
    assert command.returncode == 141
    assert errors == (
        "error: nobody reads the output any more; nothing committed is lost, and the same command resumes from here\n"
    )


def test_ctrl_c_before_the_work_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, refusing():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr() == ("interrupted before any work\n", "")


def test_a_fault_of_the_program_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        conducted(ZeroDivisionError(), tmp_path)


@pytest.mark.ray
def test_an_evaluation_whose_ray_dies_in_the_middle_ends_with_one_message(tmp_path: Path) -> None:
    flags = ["--model", "evaluated_models:build", "--norm", "Linf", "--radius", "0.1", "--images", "4", "--chunk", "4"]
    flags += ["--version", "custom", "--attacks", "apgd-ce", "--attack", "evaluated_models:wait_for_ever"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[2])))
    with socket.create_server(("127.0.0.1", 0)) as waiting:
        waiting.settimeout(300)
        environment[WAITING] = str(waiting.getsockname()[1])
        command = subprocess.Popen(
            [sys.executable, "-m", "pipeline.evaluate", *flags, "--root", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        try:
            running, _ = waiting.accept()  # the attack runs, so that the watch alone meets the loss
            running.close()
            (head,) = (each for each in psutil.Process(command.pid).children() if "gcs_server" in each.name())
            head.kill()
            _, errors = command.communicate(timeout=300)
        finally:
            command.kill()
            command.communicate()
    assert errors == (
        "error: Ray was lost: the head no longer answers. What was committed is kept; once Ray runs again, the same "
        "command resumes from there\n"
    )
    assert command.returncode == 1
