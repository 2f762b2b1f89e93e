"""Bad input ends with exit code 2 and one message, before any work is done."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.defend.plan import claimed, make_plan, recipe_fingerprint
from pipeline.defend.trials import first_trials
from pipeline.evaluate_flags import parse as parse_evaluation
from pipeline.flags import parse
from pipeline.presets import PRESETS
from pipeline.run import main
from stages.training.schedule import Schedule


class Probabilities(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :10].softmax(1)


class NotANumber(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :10] / 0 - 1 / (images.flatten(1)[:, :10] * 0)


REFUSED = {
    "unknown preset": (["imagenet"], "imagenet"),
    "unknown flag": (["--attack.stepsize", "1"], "attack.stepsize"),
    "no steps": (["--attack.steps", "0"], "at least"),
    "step larger than the ball": (["--attack.step-size", "0.3"], "larger than the ball"),
    "step off the lattice": (["--attack.step-size", "0.0003"], "nearest allowed"),
    "radius in 0..255": (["--threat.radius", "8"], "divide a radius"),
    "a norm to evaluate in only": (["--threat.norm", "L1", "--threat.radius", "5"], "evaluated but not trained"),
    "no number": (["--attack.step-size", "large"], "large"),
    "division by zero": (["--threat.radius", "8/0"], "8/0 divides by zero"),
    "division by zero where a number may be left out": (["--attack.step-size=2/0"], "2/0 divides by zero"),
    "a fraction of a fraction": (["--threat.radius", "1/2/3"], "'1/2/3' is no number"),
    "a fraction of images": (["--evaluation.images", "1/2"], "invalid literal for int"),
    "not a number": (["--threat.radius", "nan"], "nan is not a finite number"),
    "infinity": (["--train.learning-rate=1/1e-320"], "is not a finite number"),
    "below zero": (["--threat.radius=-8/255"], "threat.radius is -0.0313"),
    "more cohorts than images make": (["--schedule.round-cohorts", "12"], "1277 training images make 10 cohorts"),
    "too much lag": (["--schedule.round-cohorts=10", "--schedule.batch=32"], "max_lag_updates"),
    "absent data": (["mnist", "--data.root", "NOWHERE"], "NOWHERE"),
    "another run's shards": (["--train.from-cache", "nobody"], "no such run"),
    "probabilities": (["--model", "test_flags:Probabilities"], "probabilit"),
    "NaN": (["--model", "test_flags:NotANumber"], "NaN"),
    "no such model": (["--model", "nobody.models:build"], "cannot be imported"),
    "flipped digits": (["--augment"], "flips"),
    "a name with a path": (["--name", "../elsewhere"], "plain name"),
    "a name of other ledgers": (["--name", "trials"], "--name trials is where the ledgers of trials lie"),
    "a name of lines": (["--name", "a\nb"], "plain name, without slashes, lines"),
    "a name with a zero": (["--name", "a\0b"], "plain name"),
    "a blank name": (["--name", " "], "--name is given an empty value"),
    "a name too long for a file system": (["--name", "é" * 128], "--name has 256 bytes; at most 255"),
    "a ball that holds every image": (
        ["--threat.norm", "L2", "--threat.radius", "100", "--attack.step-size", "1"],
        "threat.radius is 100, but no two images in [0, 1] are farther apart than 8 in L2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_any_work(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    flags, message = REFUSED[case]
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--root", str(tmp_path / "root")])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert message in " ".join((said.out + said.err).replace("│", " ").split())
    assert not (tmp_path / "root").exists()


def test_a_truncated_data_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(bytes.fromhex("00000803 0000ea60 0000001c 0000001c") + bytes(100))
    with pytest.raises(SystemExit) as ended:
        main(["mnist", "--data.root", str(tmp_path), "--root", str(tmp_path / "root")])
    assert ended.value.code == 2
    assert "train-images-idx3-ubyte" in capsys.readouterr().err


def test_fractions_are_understood_where_a_number_is_asked_for() -> None:
    recipe = parse(["cifar10-linf", "--attack.step-size", "2/255", "--threat.radius=8/255"]).recipe
    assert recipe.attack.step_size == 2 / 255
    assert recipe.threat.radius == 8 / 255
    assert parse_evaluation(["--model", "m:b", "--radius=8/255"]).radius == 8 / 255


def test_text_that_looks_like_a_fraction_stays_as_it_was_written() -> None:
    command = parse(["--root", "2026/11", "--data.root=2026/10", "--weights", "3/4"])
    assert (command.root, command.recipe.data.root) == ("2026/11", "2026/10")
    assert command.recipe.model.weights == "3/4"
    flags = ["--model", "1/2", "--root=2026/11", "--attack", "7/8", "9/4", "--compare", "5/6", "--claim.name=8/255"]
    evaluation = parse_evaluation(flags)
    assert (evaluation.model.name, evaluation.root, evaluation.attack) == ("1/2", "2026/11", ("7/8", "9/4"))
    assert (evaluation.compare, evaluation.claim.name) == ("5/6", "8/255")


def test_a_name_that_looks_like_a_fraction_is_refused_as_the_path_that_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--name=1/2", "--root", str(tmp_path)])
    assert "--name '1/2' must be a plain name" in capsys.readouterr().err


def test_an_explicit_flag_is_not_searched() -> None:
    assert parse([]).recipe.search.space == ()
    searched = parse(["--search.trials=3"]).recipe.search.space
    assert [axis.partition("=")[0] for axis in searched] == ["attack.steps", "attack.step-size", "attack.noise-scale"]
    assert parse(["--search.trials=3", "--attack.step_size=0.1"]).recipe.search.space == (searched[0], searched[2])
    other = ["--search.trials=3", "--attack.steps", "10", "--search.space", "attack.step-size=0.1,0.2"]
    assert parse(other).recipe.search.space == ("attack.step-size=0.1,0.2",)


SEARCHES = {
    "a setting that is given": (
        ["--attack.steps=5", "--search.space", "attack.steps=5,10"],
        "--attack.steps is given, and --search.space searches it",
    ),
    "nothing left": (["--attack.steps=5", "--attack.step-size=0.1", "--attack.noise-scale=0.1"], "nothing is left to"),
    "a grid of a range": (["--search.algorithm=grid", "--search.space", "schedule.life=1..9"], "a grid has no points"),
    "settings that do not go together": (
        [
            *("--attack.conditioning=state", "--schedule.life=1", "--search.trials=4", "--search.algorithm=grid"),
            *("--search.space", "schedule.visit-steps=1,10", "attack.steps=5,10"),
        ],
        "of the search (schedule.visit-steps 10, attack.steps 5): conditioning is state",
    ),
    "more than the lag": (["--search.space", "schedule.round-cohorts=1,9"], "trial 1 of the search"),
    "no rung": (["--search.rounds=10", "--search.first-rounds=11"], "search.first_rounds is 11, more than the 10"),
    "half a trial": (["--workers.trial-gpus=1.5"], "workers.trial_gpus is 1.5; it must be a share"),
}


@pytest.mark.parametrize("case", SEARCHES)
def test_a_search_that_makes_no_sense_is_refused_before_any_work(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, message = SEARCHES[case]
    with pytest.raises(SystemExit, match="2"):
        main(["--search.trials=3", *flags, "--root", str(tmp_path / "root")])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "root").exists()


def test_data_that_is_brought_takes_the_preset_whose_step_follows_the_radius() -> None:
    for radius in (8 / 255, 0.3):
        command = parse(["--data", "npz:images.npz", "--eps", str(radius)])
        assert command.preset == "own"
        process = command.recipe.attack.process(command.recipe.threat)
        assert process.step == pytest.approx(process.bound / 2, abs=1)
    assert parse(["mnist", "--data", "npz:images.npz"]).preset == "mnist"
    assert parse(["--data", "digits"]).preset == "digits"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_sense_also_with_the_papers_settings(preset: str) -> None:
    for flags in ([], ["--paper"]):
        recipe = parse([preset, *flags]).recipe
        images = recipe.data.train_images or {"digits": 1277, "cifar10": 49_000}[recipe.data.name]
        tried = [trial.recipe for trial in first_trials(recipe)] if recipe.search.trials else [recipe]
        for loop in (each.loop() for each in tried):
            schedule = Schedule(loop.schedule, images=images, seed=0)
            assert schedule.lag_bound <= loop.schedule.max_lag_updates
    assert recipe.train.weight_perturbation == recipe.train.ema == recipe.train.objective.consistency == 0  # the paper


def test_the_command_line_is_frozen() -> None:
    """Users' scripts depend on the flags; a change here is a change of the interface and is said in the README."""
    flags = sorted(_flags(PRESETS["digits"]()))
    frozen = json.loads((Path(__file__).parent / "flags.json").read_text())
    assert flags == frozen


def _flags(config: object, prefix: str = "--") -> list[str]:
    found = []
    for name, value in vars(config).items():
        nested = hasattr(value, "__dataclass_fields__")
        found += _flags(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}".replace("_", "-")]
    return found


def test_a_run_is_named_by_what_it_trains() -> None:
    default = recipe_fingerprint(parse([]).recipe)
    for same in (["--data.root", "/elsewhere"], ["--evaluation.images", "360"], ["--checks.budget", "1"]):
        assert recipe_fingerprint(parse(same).recipe) == default
    for other in (["--seed", "1"], ["--schedule.rounds", "7"], ["--judge.images", "9"]):
        assert recipe_fingerprint(parse(other).recipe) != default


def test_a_run_has_one_owner_and_one_recipe(tmp_path: Path) -> None:
    plan = make_plan(parse(["--root", str(tmp_path), "--name", "mine"]))
    with claimed(plan), pytest.raises(ValueError, match="is held by process"), claimed(plan):
        pass
    other = make_plan(parse(["--root", str(tmp_path), "--name", "mine", "--train.learning-rate", "0.001"]))
    theirs = plan.recipe.train.learning_rate
    with pytest.raises(ValueError, match=f"train.learning_rate {theirs} there, 0.001 here"), claimed(other):
        pass
    with claimed(plan):
        pass


def test_a_root_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stages.storage.os.access", lambda path, mode: False)  # whom the tests run as may be root
    with pytest.raises(SystemExit, match="2"):
        main(["--root", str(tmp_path / "new")])
    assert f"{tmp_path} does not allow it; name another directory" in capsys.readouterr().err


def test_a_root_below_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        main(["--root", str(tmp_path / "file" / "new")])
    assert f"{tmp_path / 'file'} is a file; name a directory" in capsys.readouterr().err


def raising(error: Exception) -> Callable[..., dict]:
    def run(*arguments: object) -> dict:
        raise RuntimeError("a worker failed") from error

    return run


def test_a_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.run.run", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert main(["--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: the disk of {tmp_path} is full: free some space")
    monkeypatch.setattr("pipeline.run.run", raising(OSError(errno.EACCES, "not allowed")))
    with pytest.raises(RuntimeError, match="a worker failed"):
        main(["--root", str(tmp_path)])


def test_a_dry_run_says_what_there_is_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--search.trials", "3", "--root", str(tmp_path / "root")]) == 0
    said = capsys.readouterr().out
    for stage in ("classifier", "search", "rounds", "evaluation"):
        assert stage in said
    assert "pending on" in said
    assert "attack steps" in said
    assert not (tmp_path / "root").exists()
