"""A recipe out of a file is the one that went in, and what is none is refused with what to do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.defend.plan import claimed, make_plan, recipe_fingerprint
from pipeline.flags import parse
from pipeline.presets import PRESETS
from pipeline.recipe_files import read_recipe, recipe_json


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_comes_back_as_it_was_written(preset: str, tmp_path: Path) -> None:
    recipe = parse([preset, "--attack.step-size", "1/255", "--train.ema=0.5", "--search.trials=3"]).recipe
    (tmp_path / "best.json").write_text(json.dumps(recipe_json(recipe, preset)))
    assert read_recipe(str(tmp_path / "best.json")) == (preset, recipe)
    again = parse(["--recipe", str(tmp_path / "best.json"), "--train.ema=0.9"])
    assert again.preset == preset
    assert again.recipe == replace(recipe, train=replace(recipe.train, ema=0.9))


def test_the_recipe_of_a_run_is_the_same_run(tmp_path: Path) -> None:
    plan = make_plan(parse(["--root", str(tmp_path), "--schedule.rounds=7", "--search.trials=2"]))
    with claimed(plan):
        pass
    again = parse([f"--recipe={plan.run.location('recipe.json')}", "--root", str(tmp_path)])
    assert recipe_fingerprint(again.recipe) == recipe_fingerprint(plan.recipe)
    assert make_plan(again).name == plan.name


def test_yaml_names_what_differs_from_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, search = "attack:\n  step_size: 8/255\n", "search:\n  space:\n    - train.ema=0,0.9\n"
    text = f"preset: mnist\ntrain:\n  learning-rate: 5e-4\n{attack}{search}"
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    preset, recipe = read_recipe("mine.yaml")
    mnist = PRESETS["mnist"]()
    assert preset == "mnist"
    assert (recipe.train.learning_rate, recipe.attack.step_size) == (5e-4, 8 / 255)
    assert recipe.search.space == ("train.ema=0,0.9",)
    assert replace(recipe, train=mnist.train, attack=mnist.attack, search=mnist.search) == mnist


REFUSED = {
    "nothing": (None, "there is no such file"),
    "no JSON": ("{", "it cannot be read"),
    "a list": ("[1]", "it holds no settings by name"),
    "an unknown preset": ('{"preset": "imagenet"}', "it names the preset 'imagenet'; allowed are digits"),
    "an unknown setting": ('{"attack": {"stepsize": 1}}', "there is no setting attack.stepsize; there are: "),
    "no group": ('{"attack": 1}', "attack is 1; it is a group of settings: there are: "),
    "a wrong type": ('{"search": {"trials": 1.5}}', "search.trials is 1.5; it must be a whole number"),
    "the field's own check": ('{"train": {"ema": 2.0}}', "train.ema is 2; it must lie in [0, 1)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_no_recipe_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = REFUSED[case]
    if text is not None:
        (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        parse(["--recipe", str(tmp_path / "recipe.json")])
    said = capsys.readouterr().err
    assert f"--recipe {tmp_path / 'recipe.json'}: " in said
    assert message in said


def test_a_preset_and_a_file_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["mnist", "--recipe", "best.json"])
    assert "mnist and --recipe best.json are both recipes to start from" in capsys.readouterr().err
