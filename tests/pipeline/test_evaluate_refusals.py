"""An evaluation that cannot be what was asked for is refused before any work."""

import json
from pathlib import Path

import evaluated_models
import numpy as np
import pytest
import torch
from torch import nn

from pipeline.evaluate import EvaluateSettings, evaluate_model, main
from pipeline.measure.subjects import split_of
from stages.data.splits import Split

REFUSED = {
    "no such model": (["--model", "evaluated_models:nothing", "--norm", "Linf", "--radius", "0.1"], "--model"),
    "no model there": (["--model", "nowhere/model", "--norm", "Linf", "--radius", "0.1"], "holds no config.json"),
    "no ball": (["--model", "evaluated_models:build"], "--radius"),
    "radius in 0..255": (["--model", "evaluated_models:build", "--norm", "Linf", "--radius", "8"], "divide a radius"),
    "L2 radius in 0..255": (
        ["--model", "evaluated_models:build", "--norm", "L2", "--radius", "128"],
        "divide one",
    ),
    "normalised outside": (
        ["--model", "evaluated_models:Outside", "--norm", "Linf", "--radius", "0.1"],
        "put its normalisation into forward",
    ),
    "an attack that is not there": (
        ["--model", "evaluated_models:build", "--norm", "Linf", "--radius", "0.1", "--attack", "evaluated_models:no"],
        "cannot be imported",
    ),
    "an attack of three arguments": (
        [
            *("--model", "evaluated_models:build", "--norm", "Linf", "--radius", "0.1"),
            *("--attack", "evaluated_models:three_arguments"),
        ],
        "must take (model, images, labels, threat)",
    ),
    "custom without attacks": (
        ["--model", "evaluated_models:build", "--norm", "Linf", "--radius", "0.1", "--version", "custom"],
        "attacks are none",
    ),
    "a table's own radius": (["--model", "evaluated_models:build", "--table", "3", "--radius", "0.1"], "leave out"),
    "Table 6 alone": (["--model", "evaluated_models:build", "--table", "6"], "--behind"),
    "no adapter": (
        ["--model", "evaluated_models:build", "--data", "digits", "--table", "6", "--behind", "evaluated_models:build"],
        "no adapter",
    ),
    "Section 4.5 without an adapter": (
        ["--model", "evaluated_models:build", "--data", "digits", "--table", "4.5"],
        "with and without its adapter, and --model has no adapter",
    ),
    "nothing to compare with": (
        ["--model", "evaluated_models:build", "--norm", "Linf", "--radius", "0.1", "--compare", "nowhere"],
        "no results of a run or an evaluation",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_use_is_refused_before_any_work(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, message = REFUSED[case]
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--root", str(tmp_path / "root")])
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert not (tmp_path / "root").exists()


def test_another_ball_is_refused_before_the_attack(
    model: nn.Module, test: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = {"threat": {"norm": "Linf", "radius": 0.3}, "images": {"rows": [], "broken_by": []}}
    other = {"test": test.fingerprint, "data": "digits", "models": {"model": {"worst_cases": [theirs]}}}
    (tmp_path / "results.json").write_text(json.dumps(other))
    flags = ["--model", "evaluated_models:build", "--norm", "Linf", "--radius", "0.1", "--root", str(tmp_path / "root")]
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--compare", str(tmp_path)])
    assert ended.value.code == 2
    assert "attacked within Linf 0.3, this one within Linf 0.1" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def test_a_screening_takes_no_attacks_of_ones_own() -> None:
    with pytest.raises(ValueError, match="leave out version, attacks and autoattack"):
        EvaluateSettings(quick=True, attacks=["my:attack"])


def test_one_attack_is_given_in_a_list_as_well() -> None:
    for single in (evaluated_models.flip_the_signs, "evaluated_models:flip_the_signs"):
        with pytest.raises(ValueError, match="pass a list, also of one: attacks="):
            EvaluateSettings(attacks=single)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="pass a list, also of one: autoattack="):
        EvaluateSettings(version="custom", autoattack="apgd-ce")


def test_a_model_in_train_mode_and_labels_out_of_range_are_refused(model: nn.Module, test: Split) -> None:
    images, labels = test.images[:50], test.labels[:50]
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        evaluate_model(evaluated_models.build(), data="digits", norm="Linf", radius=0.1)
    with pytest.raises(ValueError, match="labels lie in"):
        evaluate_model(model, data=(images, labels + 5), norm="Linf", radius=0.1)
    standardised = (images / 255 - 0.3) / 0.4
    with pytest.raises(ValueError, match="move normalisation into the model"):
        evaluate_model(model, data=(standardised, labels), norm="Linf", radius=0.1)
    with pytest.raises(ValueError, match="multiples of 1/255"):
        split_of(images / 300, labels)
    assert np.array_equal(split_of(torch.from_numpy(images / 255).float(), labels).images, images)
