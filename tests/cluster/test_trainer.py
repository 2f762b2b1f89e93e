import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed
from ray.util.placement_group import placement_group_table

from cluster import tasks
from cluster.trainer import TrainContext, TrainingFailed, run_training

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def train(loop, config: dict, storage: Path, **options) -> None:
    run_training(loop, config, **{"workers": 1, "cpus": 0.5, "storage": storage, "name": "test"} | options)


def die_on_the_first_start(context: TrainContext, config: dict) -> None:
    """Leaves a file a start; rank 1 of the first start kills itself while rank 0 waits for it."""
    starts = Path(config["starts"])
    start = len(list(starts.glob(f"{context.rank}-*")))
    (starts / f"{context.rank}-{start}").touch()
    context.report({"start": start})
    if start == 0 and context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks = torch.tensor([float(context.rank)])
    torch.distributed.all_reduce(ranks)
    (starts / f"sum-{context.rank}").write_text(f"{ranks.item()} {context.world} {context.device}")


def fail(context: TrainContext, config: dict) -> None:
    (Path(config["starts"]) / "start").touch(exist_ok=False)
    raise KeyError("no such thing")


def die(context: TrainContext, config: dict) -> None:
    _die()


def test_a_killed_worker_of_two_starts_the_loop_again_from_a_thread(tmp_path):
    starts = tmp_path / "starts"
    starts.mkdir()
    errors = []

    def run() -> None:
        try:
            train(die_on_the_first_start, {"starts": str(starts)}, tmp_path / "ray", workers=2)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []
    assert sorted(path.name for path in starts.iterdir()) == ["0-0", "0-1", "1-0", "1-1", "sum-0", "sum-1"]
    assert {path.read_text() for path in starts.glob("sum-*")} == {"1.0 2 cpu"}
    assert list((tmp_path / "ray").iterdir()) == []


def test_the_exception_of_the_loop_is_raised_as_itself_after_one_start(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError, match="no such thing") as caught:
        train(fail, {"starts": str(tmp_path)}, tmp_path / "ray")
    assert type(caught.value) is KeyError
    assert signal.getsignal(signal.SIGINT) is handler


class Deadly:
    """Kills the train worker that receives it, while it starts."""

    def __init__(self, victims: Path) -> None:
        self.victims = victims

    def __reduce__(self):
        return _receive, (self.victims,)


def _receive(victims: Path) -> None:
    if "RayTrainWorker" in Path("/proc/self/cmdline").read_text():  # the controller receives it, too
        (victims / str(os.getpid())).touch()
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_before_its_loop_begins_leaves_its_cpus_to_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "RETRIES", 1)
    (tmp_path / "victims").mkdir()
    config = {"deadly": Deadly(tmp_path / "victims")}
    with pytest.raises(TrainingFailed, match="died in each of 2 starts"):
        train(die, config, tmp_path / "ray", cpus=2)
    assert len(list((tmp_path / "victims").iterdir())) == 2
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}


def test_a_worker_that_dies_in_every_start_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "RETRIES", 0)
    with pytest.raises(TrainingFailed, match="died in each of 1 starts"):
        train(die, {}, tmp_path / "ray")


def test_more_workers_than_the_machine_holds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs 9 x \(0.5 CPUs"):
        train(die, {}, tmp_path, workers=9)


def test_no_workers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        train(die, {}, tmp_path, workers=0)
