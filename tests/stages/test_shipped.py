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
from shipped_models import DATA, THREAT, robust_of, save
from torch import nn

from stages.rap.robust import RobustClassifier
from stages.shipped import load_model

IMAGES = torch.from_numpy(DATA.test.images[:8]).float() / 255
LABELS = torch.from_numpy(DATA.test.labels[:8])


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


def test_a_model_card_lies_beside_a_saved_model(tmp_path):
    save(tmp_path / "model", robust_of())
    front, _, text = (tmp_path / "model/README.md").read_text().removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["pipeline_tag"] == "image-classification"
    assert "# CNN, behind an adapter, trained in Linf 0.2" in text
    assert '"judge": "50 %"' in text
