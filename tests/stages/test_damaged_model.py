"""A model that is damaged, or asked for wrongly, is refused with what is not right."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from shipped_models import INPUTS, robust_of, save
from unchecked import unchecked_types

from stages.shipped import load_model


def edited(**changes: object):
    """A change of config.json."""

    def edit(model: Path) -> None:
        file = model / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def without(name: str):
    def edit(model: Path) -> None:
        file = model / "config.json"
        config = json.loads(file.read_text())
        del config[name]
        file.write_text(json.dumps(config))

    return edit


def cut(name: str, share: float = 0.5):
    def edit(model: Path) -> None:
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[: int(share * len(content))])

    return edit


def spread(std: float):
    """Weights with another standard deviation of the images."""

    def edit(model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        save_file({**weights, "classifier.normalise.std": torch.full((1, 1, 1), std)}, model / "model.safetensors")

    return edit


def of_another(model: Path) -> None:
    save(model.parent / "other", robust_of(architecture="resnet18-narrow"), architecture="resnet18-narrow")
    (model / "model.safetensors").write_bytes((model.parent / "other/model.safetensors").read_bytes())


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 501234\n"


DAMAGED = {
    "nothing there": (lambda model: (model / "config.json").unlink(), r"model holds no config\.json"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), r"but no model\.safetensors"),
    "another format": (edited(format=99), "has format 99; this version reads format 1"),
    "a list": (lambda model: (model / "config.json").write_text("[1]"), "has format a list"),
    "cut weights": (cut("model.safetensors"), r"model\.safetensors cannot be read .* bytes\).*all of it has arrived"),
    "weights cut to their header": (cut("model.safetensors", 0.01), r"model\.safetensors cannot be read"),
    "empty weights": (lambda model: (model / "model.safetensors").write_bytes(b""), r"model\.safetensors is empty"),
    "a pointer for weights": (
        lambda model: (model / "model.safetensors").write_text(POINTER),
        r"model\.safetensors is only a pointer of git-lfs, .*: run git lfs pull",
    ),
    "a pointer for the config": (
        lambda model: (model / "config.json").write_text(POINTER),
        r"config\.json is only a pointer of git-lfs",
    ),
    "weights of another model": (
        of_another,
        r"model\.safetensors does not fit the network: \d+ missing .*its config.json is another model's",
    ),
    "a cut config": (cut("config.json"), r"config\.json is no JSON .*: copy the folder of the model again"),
    "a config of bytes": (lambda model: (model / "config.json").write_bytes(b"\xff\xfe{"), r"config\.json is no JSON"),
    "another output": (edited(adapter={"output": "tanh"}), r"adapter\.output is 'tanh'; allowed are residual, sigmoid"),
    "an unknown architecture": (
        edited(classifier={"architecture": "vgg"}),
        r"classifier\.architecture is 'vgg'; allowed are cnn,",
    ),
    "brackets without end": (lambda model: (model / "config.json").write_text("[" * 100_000), "is no JSON"),
    "no inputs": (without("inputs"), r"config\.json does not describe a saved model .it lacks 'inputs'"),
    "no threat": (without("threat"), "it lacks 'threat'"),
    "no steps": (without("steps"), "it lacks 'steps'"),
    "no adapter": (without("adapter"), "it lacks 'adapter'"),
    "a threat in another unit": (edited(threat={"norm": "Linf", "radius": 51.0}), "threat.radius is 51"),
    "a threat of another shape": (edited(threat=[0.2]), "does not describe a saved model"),
    "inputs of another shape": (edited(inputs=7), "does not describe a saved model"),
    "other classes": (edited(inputs={**INPUTS, "classes": 7}), r"does not fit the network: .* another shape"),
    "an unknown setting": (edited(adapter={"widths": 8}), "does not describe a saved model .TypeError"),
    "another architecture": (
        edited(classifier={"architecture": "wrn-28-10"}),
        "its networks have 36,523,875 parameters, for which",
    ),
    "a function that is not there": (
        edited(model={"name": "nowhere:build"}),
        r"config\.json does not describe a saved model .*its classifier 'nowhere:build' cannot be imported",
    ),
    "channels without end": (
        edited(inputs={**INPUTS, "channels": 10**8}),
        r"config\.json does not describe .*parameters, for which the .* bytes of model\.safetensors are too few",
    ),
    "a std of 0": (spread(0.0), r"model\.safetensors holds normalise\.mean .* and normalise\.std \[0\.0\]; both must"),
    "a negative std": (spread(-0.3), r"normalise\.std \[-0\.3.*\]; both must be finite, and std above 0"),
    "no number for a std": (spread(float("nan")), r"holds NaN or .*the first is classifier\.normalise\.std"),
    "half a step": (edited(steps=2.5), r"steps is 2\.5; it must be a whole number"),
    "true for steps": (edited(steps=True), "steps is True; it must be a whole number"),
    "no steps at all": (edited(steps=0), r"config\.json does not describe .*T = 0"),
    "steps in words": (edited(steps="ten"), r"config\.json does not describe a saved model"),
    "an answer in words": (edited(straight_through="no"), "straight_through is 'no'; it must be True or False"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_model_is_refused_with_the_file_that_is_not_right(damage, tmp_path):
    spoil, message = DAMAGED[damage]
    save(tmp_path / "model", robust_of())
    spoil(tmp_path / "model")
    with unchecked_types(), pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model")


def test_what_is_no_folder_of_a_model_is_refused(tmp_path):
    save(tmp_path / "model", robust_of())
    for path in (tmp_path, tmp_path / "model/model.safetensors", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"holds no config\.json; a saved model is a directory"):
            load_model(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nobody-here/model", r"^the directory ~nobody-here/model is no path of this machine \(Could not determine"),
        ("m" * 5000, r"^the directory m{100}\.\.\. \(5,000 characters\) is no path .*File name too long"),
        ("m\0", r"is no path of this machine \(.*embedded null"),
        ("https://host/model", "^the directory https://host/model is a URL: copy what lies there to this machine"),
        (Path("s3://bucket/model"), "is a URL"),
    ],
    ids=["home", "long", "null", "URL", "URL as a path"],
)
def test_what_can_be_no_path_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        load_model(path)


@pytest.mark.parametrize(
    "given",
    [
        {"reverse_steps": 2.0},
        {"reverse_steps": "2"},
        {"reverse_steps": True},
        {"step_size": "0.1"},
        {"step_size": 1e400},
    ],
    ids=str,
)
def test_settings_that_are_no_numbers_are_refused_by_name(given, tmp_path):
    save(tmp_path / "model", robust_of())
    with unchecked_types(), pytest.raises(ValueError, match=f"^{next(iter(given))} is .*; it must be a "):
        load_model(tmp_path / "model", **given)
    with unchecked_types(), pytest.raises(ValueError, match="the directory is None; pass the path of a saved model"):
        load_model(None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [0.0, -0.1, 0.21])
def test_a_step_that_leads_nowhere_or_out_of_the_ball_is_refused(size, tmp_path):
    save(tmp_path / "model", robust_of())
    with pytest.raises(ValueError, match=r"^step_size is .*; it must be greater than 0 .* at most the radius, 0.2, or"):
        load_model(tmp_path / "model", reverse_steps=2, step_size=size)


def test_a_step_size_without_a_step_that_it_is_for_is_refused(tmp_path):
    save(tmp_path / "model", robust_of())
    with pytest.raises(ValueError, match=r"^step_size is 0.1, but one reverse step attacks nothing: leave it out"):
        load_model(tmp_path / "model", step_size=0.1)


def test_more_reverse_steps_than_t_are_refused(tmp_path):
    save(tmp_path / "model", robust_of())
    with pytest.raises(ValueError, match=r"reverse_steps is 11; allowed are 1 to T = 10"):
        load_model(tmp_path / "model", reverse_steps=11)
