"""Training in a notebook, on the real digits."""

import copy
import doctest
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from unchecked import unchecked_types

from stages.data.datasets import DataConfig, ImageData, load_data
from stages.evaluation.judge import JudgeConfig, Judgement, judge
from stages.nets.architectures import ClassifierConfig
from stages.nets.cnn import CNN
from stages.nets.unet import UNET_SIZES, UNet
from stages.rap.process import AttackConfig, AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import Norm, ThreatModel
from stages.training import fit as fit_module
from stages.training.adapter import Learner, TrainConfig
from stages.training.base_classifier import train_classifier
from stages.training.diverged import DivergedError
from stages.training.fit import attacked, fit

THREAT = ThreatModel(radius=0.1)
ATTACK = AttackConfig(steps=3)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataConfig(name="digits", train_images=384))


@pytest.fixture(scope="module")
def classifier(digits: ImageData) -> nn.Module:
    def build() -> nn.Module:
        return CNN(1, 8, 10, digits.mean, digits.std)

    network = build()
    config = ClassifierConfig(epochs=12)
    network.load_state_dict(train_classifier(config, digits.train, seed=0, build=build, progress=lambda line: None))
    return network.eval()


def adapter() -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(UNET_SIZES["tiny"], channels=1)


def tensors(digits: ImageData, count: int | None = None) -> tuple[Tensor, Tensor]:
    return torch.tensor(digits.train.images[:count]), torch.tensor(digits.train.labels[:count])


def few(digits: ImageData) -> list[tuple[Tensor, Tensor]]:
    return [tensors(digits, 16)]


def quick(classifier: nn.Module, loader: Any, **settings: Any) -> RobustClassifier:
    settings = {
        "threat": THREAT,
        "attack": AttackConfig(steps=2),
        "epochs": 1,
        "progress": lambda line: None,
    } | settings
    return fit(adapter(), classifier, loader, **settings)


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
    robust = fit(
        adapter(), classifier, loader, threat=THREAT, attack=ATTACK, train=train, epochs=6, progress=lines.append
    )
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
    robust = fit(mine, classifier, few(digits), threat=THREAT, attack=ATTACK, epochs=1, progress=lambda line: None)
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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda images: images / 2, "whole multiples of 1/255"),
        (lambda images: (images - 0.3) / 0.4, "move normalisation into the model"),
        (lambda images: images * 255, "divide by 255 if they are bytes"),
        (lambda images: images.index_fill(0, torch.tensor([0]), float("nan")), "1 of 16 images hold NaN"),
        (lambda images: (images * 255).to(torch.int64), "convert integers in 0..255 to uint8"),
    ],
    ids=["halves", "normalised", "0..255", "nan", "integers"],
)
def test_images_off_the_grid_are_refused(digits: ImageData, classifier: nn.Module, spoil: Any, message: str):
    images, labels = tensors(digits, 16)
    with pytest.raises(ValueError, match=f"batch 0 of the loader: .*{message}"):
        quick(classifier, [(spoil(images.float() / 255), labels)])


def test_a_loader_that_lasts_one_epoch_or_none_is_refused(digits: ImageData, classifier: nn.Module):
    with pytest.raises(ValueError, match="used up after one epoch"):
        quick(classifier, iter(few(digits)))
    with pytest.raises(ValueError, match="no batches"):
        quick(classifier, [])


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
    train = TrainConfig(what="classifier")
    robust = fit(
        None, classifier, few(digits), threat=THREAT, attack=ATTACK, train=train, epochs=1, progress=lambda line: None
    )
    assert not same(robust.classifier, classifier)
    with pytest.raises(ValueError, match="no adapter"):
        fit(None, classifier, few(digits), threat=THREAT, epochs=1)


def test_the_moving_average_is_returned_where_there_is_one(digits: ImageData, classifier: nn.Module):
    last, average = (quick(classifier, few(digits), epochs=2, train=TrainConfig(ema=ema)) for ema in (0.0, 0.9))
    assert not same(last, average)


def test_a_training_that_diverges_says_so(digits: ImageData, classifier: nn.Module):
    train = TrainConfig(learning_rate=1e30, warmup_updates=0)
    with pytest.raises(DivergedError, match=r"lower train\.learning_rate"):
        quick(classifier, few(digits), train=train, epochs=3)


class Changed(nn.Module):
    """The classifier with a change of its images or of its logits."""

    def __init__(self, classifier: nn.Module, *, before: Any, after: Any) -> None:
        super().__init__()
        self.classifier, self.before, self.after = classifier, before, after

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classifier(self.before(images) if self.before else images)
        return self.after(logits) if self.after else logits


class Forgetful(nn.Module):
    """An adapter that takes no t."""

    def forward(self, images: Tensor) -> Tensor:
        return images


class Flat(nn.Module):
    """An adapter that returns no images."""

    def forward(self, images: Tensor, t: Tensor) -> Tensor:
        return images.flatten(1)


class Nothing(nn.Module):
    """An adapter that changes nothing, and never will."""

    def forward(self, images: Tensor, t: Tensor) -> Tensor:
        return images


class Empty(nn.Module):
    """An adapter that was initialised with NaN."""

    def forward(self, images: Tensor, t: Tensor) -> Tensor:
        return images / 0 - images / 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a softmax at the end": ({"after": lambda z: z.softmax(1)}, "returned probabilities .* remove its last softmax"),
    "no gradient": ({"before": lambda x: (x > 0.5).float()}, "no gradient with respect to the image"),
    "a root": ({"before": lambda x: x.sqrt()}, "first in the derivative of sqrt"),
    "at chance": ({"after": lambda z: z.roll(1, 1)}, "no better than chance"),
    "a function": ({"classifier": lambda images: images}, "is a function; expected a torch.nn.Module"),
    "one-hot labels": ({"labels": lambda y: nn.functional.one_hot(y, 10)}, r"batch 0 .*one-hot rows"),
    "labels from 1": ({"labels": lambda y: y + 1}, r"lie in \[1, 10\]; .*count from 1, so use labels - 1"),
    "too many classes": ({"labels": lambda y: y + 7}, r"expected 0 to 9 for 10 classes"),
    "a dictionary": (
        {"batch": lambda x, y: {"image": x, "label": y}},
        "batch 0 .* is a dict with image, label; .*coll",
    ),
    "three parts": ({"batch": lambda x, y: (x, y, y)}, "is a tuple of 3"),
    "images alone": ({"batch": lambda x, y: x}, "batch 0 of the loader is a Tensor"),
    "too few labels": ({"batch": lambda x, y: (x, y[:3])}, "64 images and 3 labels"),
    "no batch axis": ({"batch": lambda x, y: (x[0], y[0])}, r"images\[None\] makes one image a batch"),
    "an adapter without t": ({"adapter": Forgetful()}, "the adapter raised TypeError .*and return images"),
    "an adapter without images": ({"adapter": Flat()}, r"the adapter returned \[2, 64\]; it must take images"),
    "an adapter of NaN": ({"adapter": Empty()}, "the adapter returned NaN"),
    "a class for an adapter": ({"adapter": UNet}, "the adapter is a type; expected"),
    "a lock": ({"lock": threading.Lock()}, "the classifier cannot be copied .TypeError: cannot pickle '_thread.lock'"),
    "an adapter without weights": ({"adapter": Nothing()}, "the adapter has no weights that could be trained"),
    "no epoch": ({"epochs": 0}, "epochs is 0; it must be at least 1"),
    "half an epoch": ({"epochs": 1.5}, "epochs is 1.5; it must be a whole number"),
    "a text for a seed": ({"seed": "1"}, "seed is '1'; it must be a whole number"),
    "a seed below 0": ({"seed": -1}, "seed is -1; it must be at least 0"),
    "a threat in a dict": ({"threat": {"radius": 0.1}}, "threat is {'radius': 0.1}; it must be a ThreatModel"),
    "no attack": ({"attack": None}, "attack is None; it must be a AttackConfig"),
    "training in a dict": ({"train": {"ema": 0.9}}, "train is {'ema': 0.9}; it must be a TrainConfig"),
    "shards of another run": ({"train": TrainConfig(from_cache="mnist")}, "from_cache is 'mnist', but .* leave it out"),
    "arithmetic of a run": ({"attack": AttackConfig(precision="tf32")}, "attack asks for tf32, compiled or determin"),
    "no word for a device": ({"device": "gpu"}, "device is 'gpu'; allowed are cpu, cuda, and cuda:N"),
    "no device": ({"device": None}, "device is None; allowed are cpu"),
    "a device that is not tested": ({"device": "mps"}, "device is 'mps'; allowed are cpu"),
    "a GPU that is not there": ({"device": "cuda:99"}, "device is 'cuda:99', but PyTorch finds .* GPU"),
    "no progress": ({"progress": None}, "progress is None; pass a function that takes a line, such as print"),
    "a radius in another unit": ({"threat": ThreatModel(norm="L2", radius=100.0)}, "radius is 100, but no two images"),
    "a radius that holds every image": ({"threat": ThreatModel(radius=1.0)}, "radius is 1, but no two images"),
}


SETTINGS = ("threat", "attack", "train", "epochs", "device", "seed", "progress")


@pytest.mark.parametrize("name", REFUSED)
def test_what_nothing_can_be_learnt_from_is_refused_before_the_first_update(
    name: str, digits: ImageData, classifier: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    given, message = REFUSED[name]
    monkeypatch.setattr(Learner, "update", lambda *given: pytest.fail("work had begun"))
    images, labels = tensors(digits, 64)
    batch = given.get("batch", lambda x, y: (x, y))(images, given.get("labels", lambda y: y)(labels))
    model: Any = Changed(classifier, before=given.get("before"), after=given.get("after")).eval()
    if "lock" in given:
        vars(model)["lock"] = given["lock"]
    settings: dict[str, Any] = {name: given[name] for name in SETTINGS if name in given}
    with unchecked_types(), pytest.raises(ValueError, match=message):
        fit(
            given.get("adapter", adapter()),
            given.get("classifier", model),
            [batch],
            **{"threat": THREAT, "epochs": 1} | settings,
        )


@pytest.mark.parametrize("loader", [None, 3, len], ids=["None", "3", "a function"])
def test_what_gives_no_batches_is_refused(loader: Any, classifier: nn.Module):
    with (
        unchecked_types(),
        pytest.raises(ValueError, match=r"the loader is .*, which has no batches .*: pass a DataLoader"),
    ):
        quick(classifier, loader)


class Passes:
    """A loader whose passes have these numbers of batches, and which may tell one."""

    def __init__(self, batch: tuple[Tensor, Tensor], *passes: int) -> None:
        self.batch, self.passes = batch, iter(passes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * next(self.passes))


class Telling(Passes):
    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("kind", "passes", "message"),
    [
        (Passes, (2, 0), "the loader of 2 batches gives none: it lasts one pass"),
        (Telling, (2, 2, 0), "gave 0 batches in epoch 2 instead of 2"),
        (Telling, (1, 1), "gave 1 batches in epoch 1 instead of 2"),
        (Telling, (3, 3), "more than 2 batches in epoch 1, by which number the learning rate was planned"),
    ],
)
def test_a_loader_whose_passes_differ_is_refused(
    digits: ImageData, classifier: nn.Module, kind: Any, passes: tuple[int, ...], message: str
):
    with pytest.raises(ValueError, match=message):
        quick(classifier, kind(tensors(digits, 16), *passes), epochs=2)


@pytest.mark.parametrize(
    "other",
    [lambda images: images.repeat(1, 3, 1, 1), lambda images: images[..., :6, :6]],
    ids=["channels", "size"],
)
def test_a_batch_of_another_shape_is_refused(digits: ImageData, classifier: nn.Module, other: Any):
    images, labels = tensors(digits, 16)
    with pytest.raises(ValueError, match=r"batch 1 of the loader has images of shape .*, the first had \[1, 8, 8\]"):
        quick(classifier, [(images, labels), (other(images), labels)])


def test_a_batch_that_is_none_is_named_by_its_number(digits: ImageData, classifier: nn.Module):
    images, labels = tensors(digits, 64)
    with pytest.raises(ValueError, match=r"batch 2 of the loader: the labels lie in \[3, 12\]; expected 0 to 9"):
        quick(classifier, [(images, labels), (images, labels), (images, labels + 3)])


def test_arrays_are_batches_as_tensors_are(digits: ImageData, classifier: nn.Module):
    images, labels = tensors(digits, 16)
    arrays = images.numpy(), labels.numpy().astype("int32")
    assert same(quick(classifier, [arrays]), quick(classifier, [(images, labels)]))


def test_an_untrained_classifier_is_held_to_no_accuracy_where_it_is_trained(digits: ImageData):
    untrained = CNN(1, 8, 10, digits.mean, digits.std)
    train = TrainConfig(what="classifier")
    fit(None, untrained, few(digits), threat=THREAT, attack=ATTACK, train=train, epochs=1, progress=lambda line: None)


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
