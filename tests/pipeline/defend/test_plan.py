"""A plan has the attacks that exist on its classes, under their names, and a classifier that is as it came."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.defend.plan import Plan, make_plan
from pipeline.flags import parse
from pipeline.measure import subjects
from pipeline.measure.subjects import inputs_of, load_base_classifier
from stages.data.datasets import DataConfig, ImageData, load_data
from stages.data.splits import Split
from stages.models import ModelConfig
from stages.nets.architectures import ClassifierConfig
from stages.nets.cnn import CNN
from stages.nets.unet import UNet, UNetConfig
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.shipped import load_model, save_model
from stages.training.base_classifier import train_classifier
from stages.weights import save_weights


def planned(classes: int, root: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Plan:
    """The plan of a run on the digits below a number alone."""

    def below(split: Split) -> Split:
        return split.take(np.flatnonzero(split.labels < classes))

    def load_few(config: DataConfig) -> ImageData:
        data = load_data(config)
        parts = {name: below(getattr(data, name)) for name in ("train", "available", "holdout", "test")}
        return replace(data, classes=data.classes[:classes], **parts)

    monkeypatch.setattr(subjects, "load_data", load_few)
    return make_plan(parse(["--root", str(root / "root"), "--schedule.round-cohorts", "1", *flags]))


@pytest.mark.parametrize("flags", [(), ("--attack.loss", "dlr"), ("--evaluation.version", "plus")])
def test_one_class_is_refused_before_any_work(flags, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has 1 class: an attack needs another one, so at least 2"):
        planned(1, tmp_path, monkeypatch, *flags)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("classes", "name"),
    [
        (2, "APGD-CE, FAB, Square"),
        (3, "APGD-CE, APGD-DLR, FAB-T (2 targets), Square"),
        (4, "APGD-CE, APGD-T (3 targets), FAB-T (3 targets), Square"),
    ],
)
def test_few_classes_are_attacked_by_what_exists_there_and_it_is_not_called_standard(
    classes, name, tmp_path, monkeypatch
):
    plan = planned(classes, tmp_path, monkeypatch)
    assert [each.name for each in plan.measurements] == [name, "PGD-40"]
    assert not plan.autoattack.is_standard
    assert plan.described["inputs"]["classes"] == classes
    assert planned(10, tmp_path, monkeypatch).autoattack.is_standard


@pytest.mark.parametrize(
    ("flags", "said", "allowed"),
    [
        (
            ("--evaluation.version", "custom", "--evaluation.attacks", "apgd-ce", "fab-t"),
            "FAB-T cannot run on 2 classes",
            ("--evaluation.version", "custom", "--evaluation.attacks", "apgd-ce", "fab", "square"),
        ),
        (("--attack.loss", "dlr"), "there are 2 classes: take margin or", ("--attack.loss", "margin")),
    ],
)
def test_what_does_not_exist_on_two_classes_is_refused_and_what_is_advised_in_its_place_is_taken(
    flags, said, allowed, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match=said):
        planned(2, tmp_path, monkeypatch, *flags)
    assert planned(2, tmp_path, monkeypatch, *allowed).measurements


def test_how_a_classifier_would_be_trained_plays_no_part_where_it_comes_with_its_weights(tmp_path):
    data = load_data(DataConfig(name="digits"))
    network = CNN(1, data.size, 10, data.mean, data.std)
    config = ClassifierConfig(epochs=2, batch=32, learning_rate=0.1)
    trained = train_classifier(config, data.train, seed=0, build=lambda: network, progress=lambda line: None)
    save_weights(trained, tmp_path / "cnn.safetensors")
    flags = ["--weights", str(tmp_path / "cnn.safetensors"), "--root", str(tmp_path / "root")]
    without, with_them = (make_plan(parse([*flags, f"--classifier.epochs={epochs}"])) for epochs in (1, 3))
    assert without.classifier_fingerprint == with_them.classifier_fingerprint


def test_a_saved_model_is_a_classifier_to_defend_without_its_adapter(tmp_path):
    data = load_data(DataConfig(name="digits"))
    network = CNN(1, data.size, 10, data.mean, data.std).eval()
    adapter = UNet(UNetConfig(width=8, multipliers=(1,)), 1)
    robust = RobustClassifier(adapter, network, steps=10, threat=ThreatModel(norm="Linf", radius=0.2))
    save_model(tmp_path / "model", robust, classifier=ClassifierConfig(), inputs=inputs_of(data), notes={})
    classifier, described = load_base_classifier(ModelConfig(name=str(tmp_path / "model")), ClassifierConfig(), data)
    images = torch.from_numpy(data.test.images[:4]) / 255
    assert torch.equal(classifier(images), network(images))
    again = RobustClassifier(None, classifier, steps=10, threat=robust.threat)
    save_model(tmp_path / "again", again, **described, notes={})
    assert torch.equal(load_model(tmp_path / "again")(images), network(images))


def test_a_saved_model_takes_no_settings_of_another(tmp_path):
    with pytest.raises(ValueError, match="is a saved model, which holds its own weights and normalisation; leave out"):
        make_plan(parse(["--model", str(tmp_path), "--mean", "0.5", "--std", "0.5", "--root", str(tmp_path)]))


@pytest.mark.parametrize(("shared", "is_refused"), [(0, False), (3, False), (4, True), (360, True)])
def test_test_images_that_are_trained_on_are_refused(shared, is_refused, tmp_path, monkeypatch):
    def load_leaking(config: DataConfig) -> ImageData:
        data = load_data(config)
        leaked = np.concatenate([data.train.images[:shared], data.test.images[shared:]])
        return replace(data, test=replace(data.test, images=leaked))

    monkeypatch.setattr(subjects, "load_data", load_leaking)
    command = parse(["--root", str(tmp_path / "root")])
    if not is_refused:
        make_plan(command)
        return
    with pytest.raises(ValueError, match=f"^{shared} of the 360 test images of digits are training images as well"):
        make_plan(command)
    assert not (tmp_path / "root").exists()


def test_training_images_of_one_class_are_refused(tmp_path, monkeypatch):
    def load_one_kind(config: DataConfig) -> ImageData:
        data = load_data(config)
        return replace(data, train=data.train.take(np.flatnonzero(data.train.labels == 3)))

    monkeypatch.setattr(subjects, "load_data", load_one_kind)
    with pytest.raises(ValueError, match=r"^all training images of digits are of one class"):
        make_plan(parse(["--root", str(tmp_path / "root")]))
