"""Trackers are told by their own clients, here by stand-ins with the same functions, and nothing twice."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import pipeline.tracking
from pipeline.flags import parse
from pipeline.tracking import Shown, Tool, TrackedRun
from stages.storage import Storage
from stages.training.journal import CHECKPOINT, WRITTEN, Journal

SETTINGS = {f"setting-{number}": number for number in range(130)}


class Told:
    """What a tracker was told, by run: settings, figures by name and step, and how it was left."""

    def __init__(self) -> None:
        self.settings: dict[str, dict] = {}
        self.points: list[tuple[str, int, str, float]] = []
        self.left: list[object] = []
        self.is_down = False

    def begin(self, run: str | None) -> str:
        if self.is_down:
            raise ConnectionError("no route to host")
        run = run or f"run-{len(self.settings)}"
        self.settings.setdefault(run, {})
        self.run = run
        return run

    def log(self, figures: dict[str, float], step: int) -> None:
        self.points += [(self.run, step, name, value) for name, value in figures.items()]


def mlflow(told: Told) -> ModuleType:
    def log_params(settings: dict) -> None:
        assert len(settings) <= 100
        told.settings[told.run] |= settings

    def start_run(run_id: str | None = None, run_name: str | None = None) -> SimpleNamespace:
        assert (run_id is None) != (run_name is None)
        return SimpleNamespace(info=SimpleNamespace(run_id=told.begin(run_id)))

    made = ModuleType("mlflow")
    made.__dict__.update(
        start_run=start_run,
        log_params=log_params,
        log_metrics=told.log,
        end_run=lambda status: told.left.append(status),
    )
    return made


def wandb(told: Told) -> ModuleType:
    def init(*, name: str, id: str | None, resume: str, config: dict) -> SimpleNamespace:
        run = told.begin(id)
        told.settings[run] |= config
        return SimpleNamespace(id=run, log=told.log, finish=lambda exit_code: told.left.append(exit_code))

    made = ModuleType("wandb")
    made.__dict__.update(init=init)
    return made


@pytest.fixture(params=["mlflow", "wandb"])
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Tool, Told]:
    told = Told()
    monkeypatch.setitem(sys.modules, request.param, {"mlflow": mlflow, "wandb": wandb}[request.param](told))
    return request.param, told


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(Storage.at(tmp_path).below("runs/run"))


def train(journal: Journal, rounds: range, shown: Shown) -> None:
    """Lines of some rounds, each followed by a checkpoint but for the last."""
    for number in rounds:
        line = {"round": number, "loss": number / 2, "seconds": 1.0, "checkpoint": number + 1 < rounds.stop}
        journal.run.put(f"metrics/{number:07}.jsonl", json.dumps(line).encode())
        if line["checkpoint"]:
            journal.run.put(CHECKPOINT, json.dumps({**dict.fromkeys(WRITTEN), "round": number + 1}).encode())
        shown.follow(line)


def track(tool: Tool, journal: Journal, say: Callable[[str], None] = print) -> Shown:
    return Shown(journal, TrackedRun(tool, journal.run, "run", SETTINGS, say))


def test_a_run_that_resumes_goes_on_with_its_run_and_tells_no_round_twice(
    tool: tuple[Tool, Told], journal: Journal
) -> None:
    name, told = tool
    with pytest.raises(KeyboardInterrupt), track(name, journal) as shown:  # noqa: PT012
        train(journal, range(3), shown)
        raise KeyboardInterrupt
    with track(name, journal) as shown:
        train(journal, range(2, 5), shown)
        shown.catch_up()
        shown.conclude({"robust accuracy": 0.5})
    with track(name, journal) as shown:  # there is nothing new
        shown.catch_up()
        shown.conclude({"robust accuracy": 0.5})
    assert told.settings == {"run-0": SETTINGS}
    losses = [(step, value) for _, step, name, value in told.points if name == "training/loss"]
    assert losses == [(1, 0.0), (2, 0.5), (3, 1.0), (4, 1.5)]
    assert [point[1:] for point in told.points if point[2] == "robust accuracy"] == [(5, "robust accuracy", 0.5)]
    assert told.left == {"mlflow": ["KILLED", "FINISHED"], "wandb": [1, 0]}[name]


def test_a_tracker_that_is_down_ends_no_training_and_is_told_later(tool: tuple[Tool, Told], journal: Journal) -> None:
    (name, told), said = tool, []
    told.is_down = True
    with track(name, journal, said.append) as shown:
        train(journal, range(3), shown)
        assert said == [f"{name} could not be told (no route to host); the same command tries again"] * len(said) != []
        told.is_down = False
    with track(name, journal) as shown:
        shown.catch_up()
    assert [step for _, step, name, _ in told.points if name == "training/loss"] == [1, 2]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_client_that_is_not_installed_is_refused_before_work_with_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match="2"):
        parse(["--track", name])
    said = capsys.readouterr().err
    assert said.startswith(f"error: --track {name} needs its client (")
    assert f"pip install 'rap-pipeline[{name}]'" in said


def test_the_example_runs() -> None:
    import doctest

    assert doctest.testmod(pipeline.tracking).attempted
    assert not doctest.testmod(pipeline.tracking).failed
