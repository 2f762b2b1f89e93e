import os
import signal
from pathlib import Path

import pytest
import ray

from cluster.session import PlacementError
from cluster.tasks import RETRIES
from cluster.tuner import run_trials

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def work(asked: dict) -> None:
    """Leaves a file a start; dies or fails as often as it is told to, and then leaves another one."""
    marks, name = Path(asked["marks"]), asked["name"]
    start = len(list(marks.glob(f"{name}-start-*")))
    (marks / f"{name}-start-{start}").write_text(str(ray.get_runtime_context().get_placement_group_id()))
    if start < asked.get("deaths", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if start < asked.get("errors", 0):
        raise ValueError("the ground\nis broken")
    (marks / f"{name}-done").touch()


def sign(asked: dict) -> None:
    """Leaves the number of its process, which takes over one trial after the other."""
    (Path(asked["marks"]) / f"{asked['name']}-{os.getpid()}").touch()


def test_trials_run_under_their_names_and_one_that_dies_begins_again(tmp_path):
    told = []
    asked = {
        "1-first": {"marks": str(tmp_path), "name": "first"},
        "2-dies": {"marks": str(tmp_path), "name": "dies", "deaths": RETRIES},
    }
    failed = run_trials(work, asked, cpus=0.5, logs=tmp_path / "tune", ended=lambda *each: told.append(each))
    assert failed == {}
    assert sorted(told) == [("1-first", None), ("2-dies", None)]
    assert {path.name for path in tmp_path.glob("*-done")} == {"first-done", "dies-done"}
    assert len(list(tmp_path.glob("dies-start-*"))) == RETRIES + 1
    assert all(path.read_text() != "None" for path in tmp_path.glob("*-start-*"))
    assert not list((tmp_path / "tune").iterdir())


def test_a_trial_that_keeps_failing_says_why_and_the_others_end(tmp_path):
    asked = {
        "1-fails": {"marks": str(tmp_path), "name": "fails", "errors": 100},
        "2-dies": {"marks": str(tmp_path), "name": "dies", "deaths": 100},
        "3-works": {"marks": str(tmp_path), "name": "works"},
    }
    failed = run_trials(work, asked, cpus=0.5, logs=tmp_path / "tune")
    assert failed["1-fails"] == "ValueError: the ground is broken"
    assert "died" in failed["2-dies"]
    assert set(failed) == {"1-fails", "2-dies"}
    assert (tmp_path / "works-done").exists()
    assert {path.name for path in (tmp_path / "tune").glob("*/*") if path.is_dir()} == set(asked)


def test_one_at_a_time_they_share_one_process(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    asked = {f"{number}": {"marks": str(marks), "name": number} for number in range(4)}
    assert run_trials(sign, asked, cpus=0.5, concurrent=1, logs=tmp_path / "tune") == {}
    signed = [path.name.split("-") for path in marks.iterdir()]
    assert sorted(name for name, _ in signed) == list(asked)
    assert len({process for _, process in signed}) == 1


def test_a_trial_that_no_node_can_hold_is_refused_at_once(tmp_path):
    with pytest.raises(PlacementError, match=r"a trial needs 1 x \(1 CPUs, 8 GPUs\), but this machine has"):
        run_trials(work, {"one": {}}, cpus=1, gpus=8, logs=tmp_path / "tune")
    assert not (tmp_path / "tune").exists()
