"""Clean training of the base classifier, on the real digits."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from stages.data.splits import Split, divide
from stages.evaluation.accuracy import clean_mask
from stages.evaluation.contract import check_model
from stages.nets.architectures import ClassifierConfig, build_classifier
from stages.numerics import DeviceMemoryError
from stages.rap.threat import ThreatModel
from stages.storage import Storage
from stages.training.base_classifier import CHECKPOINT, settle_batch_norm, train_classifier
from stages.training.diverged import DivergedError


@functools.cache
def digits() -> tuple[Split, Split]:
    """1,437 of the 8x8 digits to train on and the other 360 to test on."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.round(255 / 16 * np.asarray(pixels)).astype(np.uint8).reshape(-1, 1, 8, 8)
    split = Split(images, np.asarray(labels).astype(np.int64), np.arange(len(images)))
    return divide(split, 1437, 360, "test")


def build(config: ClassifierConfig) -> nn.Module:
    return build_classifier(config, channels=1, size=8, classes=10, mean=(0.305,), std=(0.376,))


def train(config: ClassifierConfig, split: Split, *, seed: int = 0) -> dict[str, Tensor]:
    return train_classifier(config, split, seed=seed, build=lambda: build(config), progress=lambda line: None)


def judged(config: ClassifierConfig, state: dict[str, Tensor]) -> tuple[nn.Module, float]:
    classifier, (_, test) = build(config), digits()
    classifier.load_state_dict(state)
    return classifier, float(clean_mask(classifier, torch.tensor(test.images), torch.tensor(test.labels)).mean())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def few(count: int) -> Split:
    return digits()[0].take(np.arange(count))


def test_the_cnn_learns_the_digits_and_passes_its_check():
    config = ClassifierConfig(epochs=20)
    state = train(config, digits()[0])
    classifier, accuracy = judged(config, state)
    assert accuracy >= 0.98
    images, labels = torch.tensor(digits()[1].images[:100]), torch.tensor(digits()[1].labels[:100])
    check_model(classifier, images, labels, classes=10, threat=ThreatModel(radius=0.1))
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_batch_norm_answers_rightly_after_a_dozen_updates():
    config = ClassifierConfig(architecture="resnet18-narrow", epochs=6, batch=64, learning_rate=0.1)
    _, accuracy = judged(config, train(config, few(128)))
    assert accuracy >= 0.5


def test_settled_statistics_are_those_of_the_whole_set():
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(1, momentum=0.3)).train()
    images = torch.from_numpy(few(200).images)
    settle_batch_norm(network, images, batch=50)
    norm = network[0]
    pixels = images.double() / 255
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_mean.item() == pytest.approx(pixels.mean().item(), rel=1e-5)
    assert norm.momentum == 0.3
    assert not network.training


@pytest.mark.parametrize("augment", [False, True])
def test_the_same_seed_gives_the_same_bytes(augment: bool):
    config = ClassifierConfig(epochs=2, batch=32, augment=augment)
    once, again, other = (train(config, few(100), seed=seed) for seed in (3, 3, 4))
    assert same(once, again)
    assert not same(once, other)


def test_augmentation_changes_what_is_learnt():
    plain, augmented = (
        train(ClassifierConfig(epochs=1, batch=32, augment=augment), few(100)) for augment in (False, True)
    )
    assert not same(plain, augmented)


def test_smoothed_labels_make_a_classifier_less_sure_of_itself():
    images = torch.tensor(digits()[1].images).float() / 255
    sure = {}
    for smoothing in (0.0, 0.2):
        config = ClassifierConfig(epochs=5, label_smoothing=smoothing)
        classifier, accuracy = judged(config, train(config, digits()[0]))
        assert accuracy > 0.9
        with torch.no_grad():
            sure[smoothing] = float(classifier(images).softmax(1).amax(1).mean())
    assert sure[0.2] < sure[0.0] - 0.1


def test_an_epoch_waits_for_nothing(waiting: Any):
    config = ClassifierConfig(epochs=1, batch=32)
    with waiting() as device:
        train(config, few(96))
    assert device.asked == ["_local_scalar_dense"]  # whether the changed layout answers as before, once a training


def test_the_callers_random_numbers_and_threads_stay_as_they_were():
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(ClassifierConfig(epochs=1, threads=threads + 1), few(64))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_a_set_smaller_than_a_batch_is_trained_on():
    config = ClassifierConfig(architecture="resnet18-narrow", epochs=2)
    assert all(tensor.isfinite().all() for tensor in train(config, few(5)).values())


def test_a_line_is_reported_every_epoch():
    lines: list[str] = []
    config = ClassifierConfig(epochs=3)
    train_classifier(config, few(128), seed=0, build=lambda: build(config), progress=lines.append)
    assert [line.split(",")[0] for line in lines] == [f"classifier: epoch {epoch} of 3" for epoch in (1, 2, 3)]


class KilledError(Exception):
    """Stands for the end of a process."""


def test_a_training_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path):
    """With dropout, momentum and BatchNorm, all of which a checkpoint must hold."""
    checkpoint = Storage.at(tmp_path / "new")
    for config in (ClassifierConfig(epochs=4), ClassifierConfig(architecture="resnet18-narrow", epochs=4)):
        lines: list[str] = []

        def kill(line: str, lines: list[str] = lines) -> None:
            lines.append(line)
            if "epoch 3 " in line:  # said before the epoch is written down
                raise KilledError

        def again(progress: Callable[[str], None], config: ClassifierConfig = config) -> dict[str, Tensor]:
            return train_classifier(
                config, few(256), seed=0, build=lambda: build(config), checkpoint=checkpoint, progress=progress
            )

        with pytest.raises(KilledError):
            again(kill)
        assert same(again(lines.append), train(config, few(256)))
        assert [line.split(" of ")[0][-1] for line in lines] == ["1", "2", "3", "3", "4"]
        checkpoint.delete([CHECKPOINT])


def test_a_training_that_diverges_says_so():
    with pytest.raises(DivergedError, match=r"lower classifier\.learning_rate \(now 1e\+20\)"):
        train(ClassifierConfig(epochs=3, batch=16, learning_rate=1e20), few(64))


def test_a_device_without_room_for_a_batch_is_told_what_to_lower():
    class Full(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, images):
            if self.training:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return self.layer(images.flatten(1))

    with pytest.raises(DeviceMemoryError, match=r"no room for classifier\.batch = 48 .*: lower it"):
        train_classifier(ClassifierConfig(epochs=1, batch=48), digits()[0], seed=0, build=Full)
