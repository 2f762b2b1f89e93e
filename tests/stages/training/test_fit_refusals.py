"""Training in a notebook: what nothing can be learnt from is refused, with its batch where it is one."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fitted_digits import few, quick, tensors
from torch import Tensor, nn
from unchecked import unchecked_types

from stages.data.datasets import ImageData
from stages.nets.unet import UNet
from stages.rap.process import AttackConfig
from stages.rap.threat import ThreatModel
from stages.training.adapter import Learner, TrainConfig


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


class Other(nn.Module):
    """An adapter with a weight, that makes something else of it and the images."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change, self.weight = change, nn.Parameter(torch.tensor(0.5))

    def forward(self, images: Tensor, t: Tensor) -> Tensor:
        return self.change(images, self.weight)


class Lazy(nn.Module):
    """An adapter that no image has initialised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(1, 3, padding=1)

    def forward(self, images: Tensor, t: Tensor) -> Tensor:
        return self.conv(images)


UNTRAINABLE: dict[str, tuple[Any, str]] = {
    "detached": (lambda x, w: (x * w).detach(), "estimate has no gradient, .*must not leave PyTorch's graph"),
    "blind": (lambda x, w: (x * 0).detach() + w, "no gradient by the image, which attacks follow"),
    "rounded": (lambda x, w: (255 * x * w).round() / 255, "depends on none of its weights by a gradient"),
    "unused": (lambda x, w: 1 * x, "depends on none of its weights by a gradient"),
    "random": (lambda x, w: x * w + torch.rand_like(x), "other estimates each time, by up to .* remove its random"),
    "in place": (lambda x, w: x.mul_(w.detach()), "the adapter raised RuntimeError .*in-place"),
    "steep": (lambda x, w: (x * w).sqrt(), "gradients of the adapter's estimate are NaN or infinite"),
    "whole": (lambda x, w: (x * w).long(), "the adapter returned torch.int64; .*as floats"),
}


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
    **{f"an adapter, {name}": ({"adapter": Other(change)}, said) for name, (change, said) in UNTRAINABLE.items()},
    "a lazy adapter": ({"adapter": Lazy()}, "the adapter is not initialised: its lazy modules"),
    "an adapter without values": ({"adapter": Other(None).to("meta")}, "the adapter lies on the meta device"),
    "a classifier without values": ({"classifier": nn.Linear(64, 10, device="meta")}, "the model lies on the meta"),
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


PASSED = ("adapter", "threat", "attack", "train", "epochs", "device", "seed", "progress")


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
    passed: dict[str, Any] = {name: given[name] for name in PASSED if name in given}
    with unchecked_types(), pytest.raises(ValueError, match=message):
        quick(given.get("classifier", model), [batch], **passed)


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
