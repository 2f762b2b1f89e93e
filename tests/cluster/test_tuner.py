import json
import os
import signal
from pathlib import Path

import pytest

from cluster.tuner import choose, search


def climb(config: dict, report) -> None:
    """The metric of rung r is step x r; each start leaves a file, and the first one of step 2 is killed."""
    starts = Path(config["marks"])
    start = len(list(starts.glob(f"{config['step']}-*")))
    (starts / f"{config['step']}-{start}").touch()
    if config["step"] == 2 and start == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    for rung in (1, 2, 3, 4):
        report({"rung": rung, "height": config["step"] * rung})


def stumble(config: dict, report) -> None:
    if (Path(config["marks"]) / "broken").exists():
        raise ValueError("the ground is broken")
    report({"rung": 1, "height": config["step"]})


def run(trial, storage: Path, space: dict, **options) -> list:
    fixed = {"trials": 4, "metric": "height", "rungs": 4, "concurrent": 1, "cpus_per_trial": 0.5}
    return search(trial, space, **fixed | {"storage": storage, "name": "test", "seed": 0} | options)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_search_finds_the_best_stops_the_worst_survives_a_kill_and_is_kept(tmp_path):
    space = {"step": [4, 3, 2, 1], "marks": [str(tmp_path)]}
    told = []
    results = run(climb, tmp_path / "searches", space, progress=lambda config, rung: told.append((config, rung)))
    assert [result.config["step"] for result in results] == [4, 3, 2, 1]
    assert [len(result.rungs) for result in results] == [4, 1, 1, 1]
    assert results[0].rungs[-1] == {"rung": 4, "height": 16}
    assert [result.error for result in results] == [None] * 4
    assert [rung["height"] for config, rung in told if config["step"] == 4] == [4, 8, 12, 16]
    starts = sorted(path.name for path in tmp_path.glob("*-*"))
    assert starts == ["1-0", "2-0", "2-1", "3-0", "4-0"]
    assert run(climb, tmp_path / "searches", space) == results
    assert sorted(path.name for path in tmp_path.glob("*-*")) == starts
    with pytest.raises(ValueError, match="holds another search"):
        run(climb, tmp_path / "searches", space, rungs=5)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_failed_trial_says_why_and_begins_again_with_the_next_call(tmp_path):
    space = {"step": [5], "marks": [str(tmp_path)]}
    (tmp_path / "broken").touch()
    [failed] = run(stumble, tmp_path / "searches", space)
    assert failed.error == "ValueError: the ground is broken"
    (tmp_path / "broken").unlink()
    told = []
    [result] = run(stumble, tmp_path / "searches", space, progress=lambda config, rung: told.append(rung))
    assert result.error is None
    assert result.rungs == [{"rung": 1, "height": 5}]
    assert [rung["height"] for rung in told] == [5]


def test_the_whole_grid_is_tried_when_it_is_small_enough():
    configs = choose({"a": [1, 2], "b": ["x", "y", "z"]}, 6, 0)
    assert len({json.dumps(config) for config in configs}) == 6


def test_a_sample_is_a_function_of_its_seed_without_repeats():
    space = {"a": list(range(10)), "b": list(range(10))}
    sample = choose(space, 20, 1)
    assert len({json.dumps(config) for config in sample}) == 20
    assert sample == choose(space, 20, 1)
    assert sample != choose(space, 20, 2)


@pytest.mark.parametrize("options", [{"trials": 0}, {"grace": 5}, {"reduction_factor": 1}, {"space": {"step": []}}])
def test_numbers_that_make_no_sense_are_refused(options, tmp_path):
    with pytest.raises(ValueError, match="needs at least"):
        run(climb, tmp_path, **{"space": {"step": [1]}} | options)
