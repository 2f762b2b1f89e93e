"""Training in a notebook, on the real digits."""

import copy
import doctest
from typing import Any

import pytest
import torch
from fitted_digits import ATTACK, THREAT, adapter, few, quick, tensors
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from stages.data.datasets import ImageData
from stages.evaluation.judge import JudgeConfig, Judgement, judge
from stages.nets.cnn import CNN
from stages.rap.process import AttackConfig, AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import Norm, ThreatModel
from stages.training import fit as fit_module
from stages.training.adapter import TrainConfig
from stages.training.diverged import DivergedError
from stages.training.fit import attacked


def judged(model: nn.Module, digits: ImageData) -> Judgement:
    holdout = digits.holdout
    images, labels = torch.from_numpy(holdout.images), torch.from_numpy(holdout.labels)
    return judge(model, images, labels, holdout.rows, THREAT, JudgeConfig(images=None))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_loss_falls_and_the_judge_finds_a_more_robust_classifier(digits: ImageData, classifier: nn.Module):
    lines: list[str] = []
    loader = DataLoader(
        TensorDataset(*tensors(digits)), batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    train = TrainConfig(learning_rate=3e-3, warmup_updates=5)
    robust = quick(classifier, loader, attack=ATTACK, train=train, epochs=6, progress=lines.append)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert len(losses) == 6
    assert losses[-1] < 0.75 * losses[0]
    untrained = judged(RobustClassifier(adapter(), classifier, steps=3, threat=THREAT), digits).robust
    after = judged(robust, digits)
    assert after.robust.interval[0] > untrained.interval[1]
    assert after.clean.value > 0.85


def test_the_example_runs():
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    (example,) = (test for test in finder.find(fit_module) if test.examples)
    assert runner.run(example).failed == 0


def test_what_was_passed_stays_as_it_was(digits: ImageData, classifier: nn.Module):
    mine, training = adapter(), classifier.training
    robust = quick(classifier, few(digits), adapter=mine)
    assert robust.adapter is not None
    assert same(mine, adapter())
    assert not same(mine, robust.adapter)
    assert same(classifier, robust.classifier)
    assert classifier.training == training
    assert all(weight.requires_grad for weight in classifier.parameters())
    assert not any(weight.requires_grad for weight in robust.parameters())


def test_floats_and_bytes_of_the_same_images_give_the_same_weights(digits: ImageData, classifier: nn.Module):
    images, labels = tensors(digits, 16)
    from_bytes, from_floats = quick(classifier, [(images, labels)]), quick(classifier, [[images.float() / 255, labels]])
    assert same(from_bytes, from_floats)
    assert not same(from_bytes, quick(classifier, [(images, labels)], seed=1))


def test_a_loader_without_a_length_is_counted(digits: ImageData, classifier: nn.Module):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(*tensors(digits, 16), strict=True))

    assert same(quick(classifier, DataLoader(Stream(), batch_size=16)), quick(classifier, few(digits)))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_state_of_every_trajectory_is_trained_on(digits: ImageData, classifier: nn.Module, norm: Norm):
    images, labels = tensors(digits, 128)
    process: AttackProcess = AttackConfig(steps=4).process(ThreatModel(norm=norm, radius=0.2))
    batch = attacked(
        RobustClassifier(adapter(), classifier, steps=4, threat=THREAT), images, labels, process, key=(0, 0)
    )
    assert sorted(set(batch.t.tolist())) == [1, 2, 3, 4]
    assert torch.equal(batch.clean, images.float() / 255)
    moved = (batch.states - batch.clean).flatten(1)
    size = moved.abs().amax(1) if norm == "Linf" else moved.norm(dim=1)
    assert 0.1 < size.min() <= size.max() <= 0.2 + 1e-6


def test_a_classifier_alone_is_trained_adversarially(digits: ImageData, classifier: nn.Module):
    robust = quick(classifier, few(digits), adapter=None, train=TrainConfig(what="classifier"))
    assert not same(robust.classifier, classifier)
    with pytest.raises(ValueError, match="no adapter"):
        quick(classifier, few(digits), adapter=None)


def test_the_moving_average_is_returned_where_there_is_one(digits: ImageData, classifier: nn.Module):
    last, average = (quick(classifier, few(digits), epochs=2, train=TrainConfig(ema=ema)) for ema in (0.0, 0.9))
    assert not same(last, average)


def test_a_training_that_diverges_says_so(digits: ImageData, classifier: nn.Module):
    train = TrainConfig(learning_rate=1e30, warmup_updates=0)
    with pytest.raises(DivergedError, match=r"lower train\.learning_rate"):
        quick(classifier, few(digits), train=train, epochs=3)


def test_arrays_are_batches_as_tensors_are(digits: ImageData, classifier: nn.Module):
    images, labels = tensors(digits, 16)
    arrays = images.numpy(), labels.numpy().astype("int32")
    assert same(quick(classifier, [arrays]), quick(classifier, [(images, labels)]))


def test_an_untrained_classifier_is_held_to_no_accuracy_where_it_is_trained(digits: ImageData):
    untrained = CNN(1, 8, 10, digits.mean, digits.std)
    quick(untrained, few(digits), adapter=None, train=TrainConfig(what="classifier"))


@pytest.mark.parametrize("what", ["adapter", "classifier"])
def test_a_pruned_classifier_is_trained_as_it_is(digits: ImageData, classifier: nn.Module, what: Any):
    pruned = copy.deepcopy(classifier)
    for part in pruned.modules():
        if isinstance(part, nn.Conv2d):
            prune.l1_unstructured(part, "weight", 0.1)
    expected = pruned(tensors(digits, 16)[0] / 255)
    robust = quick(pruned, few(digits), train=TrainConfig(what=what))
    found = robust.classifier(tensors(digits, 16)[0] / 255)
    assert torch.equal(found, expected) == (what == "adapter")
    masks = dict(pruned.named_buffers())
    assert all(torch.equal(mask, masks[name]) for name, mask in robust.classifier.named_buffers())


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_wherever_it_is_called(around: Any, digits: ImageData, classifier: nn.Module):
    expected = quick(classifier, few(digits))
    with around():
        found = quick(classifier, few(digits))
    assert same(found, expected)
