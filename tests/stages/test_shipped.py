"""The shipped model: saved, loaded in one line, the same bits, and at home in other people's attacks."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from unchecked import unchecked_types

from stages.data.datasets import DataConfig, load_data
from stages.nets.architectures import ClassifierConfig, build_classifier
from stages.nets.unet import UNet, UNetConfig
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.shipped import load_model, save_model

DATA = load_data(DataConfig(name="digits"))
IMAGES = torch.from_numpy(DATA.test.images[:8]).float() / 255
LABELS = torch.from_numpy(DATA.test.labels[:8])
INPUTS = {"channels": 1, "size": 8, "classes": 10, "mean": DATA.mean, "std": DATA.std}
THREAT = ThreatModel(norm="Linf", radius=0.2)


def robust_of(*, adapter: bool = True, architecture: str = "cnn", straight_through: bool = True) -> RobustClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ClassifierConfig(architecture=architecture)  # pyright: ignore[reportArgumentType]
        classifier = build_classifier(config, **INPUTS)  # pyright: ignore[reportArgumentType]
        net = UNet(UNetConfig(width=8, multipliers=(1, 2), attention=1), 1) if adapter else None
        for parameter in net.parameters() if net else ():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return RobustClassifier(net, classifier, steps=10, threat=THREAT, straight_through=straight_through).eval()


def save(directory: Path, robust: RobustClassifier, **classifier: object) -> None:
    config = ClassifierConfig(**classifier)  # pyright: ignore[reportArgumentType]
    save_model(directory, robust, classifier=config, inputs=dict(INPUTS), notes={"judge": "50 %"})


@pytest.mark.parametrize("options", [{}, {"adapter": False}, {"straight_through": False}], ids=str)
def test_a_saved_model_gives_the_same_logits_bit_for_bit(options, tmp_path):
    robust = robust_of(**options)
    save(tmp_path / "model", robust)
    loaded = load_model(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), robust(IMAGES))
        assert torch.equal(loaded.purify(IMAGES), robust.purify(IMAGES))
        torch.testing.assert_close(loaded(IMAGES[:1]), loaded(IMAGES)[:1])
    assert loaded.straight_through == robust.straight_through
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("architecture", ["cnn", "resnet18-narrow"])
def test_every_classifier_comes_back_with_its_buffers(architecture, tmp_path):
    robust = robust_of(architecture=architecture)
    save(tmp_path / "model", robust, architecture=architecture)
    state, loaded = robust.state_dict(), load_model(tmp_path / "model").state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[name], value) for name, value in loaded.items())


def test_a_model_loads_in_a_fresh_process(tmp_path):
    robust = robust_of()
    save(tmp_path / "model", robust)
    torch.save(IMAGES, tmp_path / "images.pt")
    program = (
        "import sys, torch; from stages.shipped import load_model; torch.set_num_threads(1);"
        "model = load_model('model');"
        "torch.save(model(torch.load('images.pt')), 'logits.pt'); print('ray' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wanted = robust(IMAGES)
    torch.set_num_threads(threads)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), wanted)
    assert done.stdout.strip() == "False"


def test_loading_takes_no_random_numbers(tmp_path):
    save(tmp_path / "model", robust_of())
    state = torch.get_rng_state()
    load_model(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)


def test_more_reverse_steps_are_offered_on_loading(tmp_path):
    save(tmp_path / "model", robust_of())
    adaptive = load_model(tmp_path / "model", reverse_steps=3)
    assert adaptive.times == [10, 7, 3]
    assert (adaptive.threat, adaptive.step_size) == (THREAT, 0.05)
    assert load_model(tmp_path / "model", reverse_steps=3, step_size=0.01).step_size == 0.01
    assert not torch.equal(adaptive(IMAGES).detach(), load_model(tmp_path / "model")(IMAGES))


def test_it_works_in_autoattack_unchanged(tmp_path):
    from pyautoattack import AutoAttack

    save(tmp_path / "model", robust_of())
    model = load_model(tmp_path / "model")
    labels = model(IMAGES).argmax(1)
    attack = AutoAttack(model, norm="Linf", eps=0.2, version="custom", attacks=["apgd-ce"], device="cpu")
    attack.apgd.n_iter = 10
    adversarial = attack.run_standard_evaluation(IMAGES, labels, batch_size=8)[0]
    assert (adversarial - IMAGES).abs().max() <= 0.2 + 1e-6
    assert (model(adversarial).argmax(1) != labels).any()


def test_it_works_in_foolbox_unchanged(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox's own imports warn
        from foolbox.attacks import LinfPGD
        from foolbox.models.pytorch import PyTorchModel

    save(tmp_path / "model", robust_of())
    model = load_model(tmp_path / "model")
    labels = model(IMAGES).argmax(1)
    wrapped = PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, adversarial, success = LinfPGD(steps=10)(wrapped, IMAGES, labels, epsilons=0.2)
    assert (adversarial - IMAGES).abs().max() <= 0.2 + 1e-6
    assert torch.equal(success, model(adversarial).argmax(1) != labels)
    assert success.any()


def test_notes_and_threat_model_are_kept(tmp_path):
    save(tmp_path / "model", robust_of())
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["notes"] == {"judge": "50 %"}
    assert config["threat"] == {"norm": "Linf", "radius": 0.2}


def test_an_adapter_that_could_not_be_built_again_is_refused_before_anything_is_written(tmp_path):
    robust = RobustClassifier(nn.Identity(), robust_of().classifier, steps=3, threat=THREAT)
    with pytest.raises(ValueError, match="the adapter is a Identity; only a UNet can be saved"):
        save(tmp_path / "model", robust)
    assert not (tmp_path / "model").exists()


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
    "no number for a std": (spread(float("nan")), r"normalise\.std \[nan\]; both must be finite"),
    "no steps at all": (edited(steps=0), r"config\.json does not describe .*T = 0"),
    "steps in words": (edited(steps="ten"), r"config\.json does not describe a saved model"),
    "an answer in words": (edited(straight_through="no"), "straight_through is 'no'; it must be true or false"),
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
        ("m\0", r"is no path of this machine \(embedded null byte\)"),
        ("https://host/model", "^the directory https://host/model is a URL: copy what lies there to this machine"),
        (Path("s3://bucket/model"), "is a URL"),
    ],
    ids=["home", "long", "null", "URL", "URL as a path"],
)
def test_what_can_be_no_path_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        load_model(path)


@pytest.mark.parametrize("given", [{"reverse_steps": 2.0}, {"reverse_steps": "2"}, {"step_size": "0.1"}], ids=str)
def test_settings_that_are_no_numbers_are_refused_by_name(given, tmp_path):
    save(tmp_path / "model", robust_of())
    with unchecked_types(), pytest.raises(ValueError, match=f"^{next(iter(given))} is .*; pass a number"):
        load_model(tmp_path / "model", **given)
    with unchecked_types(), pytest.raises(ValueError, match="the directory is None; pass the path of a saved model"):
        load_model(None)  # pyright: ignore[reportArgumentType]


def test_more_reverse_steps_than_t_are_refused(tmp_path):
    save(tmp_path / "model", robust_of())
    with pytest.raises(ValueError, match=r"reverse_steps is 11; allowed are 1 to T = 10"):
        load_model(tmp_path / "model", reverse_steps=11)


def test_a_model_card_lies_beside_a_saved_model(tmp_path):
    save(tmp_path / "model", robust_of())
    front, _, text = (tmp_path / "model/README.md").read_text().removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["pipeline_tag"] == "image-classification"
    assert "# CNN, behind an adapter, trained in Linf 0.2" in text
    assert '"judge": "50 %"' in text
