"""The model contract: whatever cannot be attacked is refused with its cause."""

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from checked_models import IMAGES, LABELS, MODEL, THREAT, after, before, check
from known_models import Wrapped, noisy, train_linear
from torch import Tensor, nn
from torch.nn import functional
from unchecked import unchecked_types

from stages.evaluation.contract import check_model
from stages.rap.threat import ThreatModel


class NoGradient(nn.Module):
    """A forward without a graph."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return MODEL(images)


class Inference(nn.Module):
    """Another."""

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return MODEL(images)


class Table(nn.Module):
    """Trainable weights that are looked up by what has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.table(images.flatten(1).argmax(1))


class NoBackward(torch.autograd.Function):
    """A function of somebody who never needed its derivative."""

    @staticmethod
    def forward(ctx, images):
        return images * 1

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError("not needed")


class Watchful(nn.Module):
    """Another model where it is attacked."""

    def __init__(self, is_watched: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.is_watched = is_watched

    def forward(self, images: Tensor) -> Tensor:
        return MODEL(images) * (-1 if self.is_watched(images) else 1)


class InPlace(nn.Module):
    """Normalisation that is written into the image that it was given."""

    def forward(self, images: Tensor) -> Tensor:
        images -= 0.1
        return MODEL(images)


class Dropping(nn.Module):
    """Dropout that no eval mode ends."""

    def forward(self, images: Tensor) -> Tensor:
        return MODEL(functional.dropout(images, 0.2))


class Stubborn(nn.Dropout):
    """A module that does not leave its training mode."""

    def train(self, mode: bool = True):
        return super().train(True)


class HalfBlind(nn.Module):
    """NaN off the 8-bit grid only, where no clean image lies."""

    def forward(self, images: Tensor) -> Tensor:
        between = (255 * images - (255 * images).round()).abs().amax((1, 2, 3))
        return MODEL(images) + torch.where(between > 0.01, math.nan, 0.0)[:, None]


class Keeping(nn.Module):
    """Answers that are kept by where images lie in memory, and not by what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = {}

    def forward(self, images: Tensor) -> Tensor:
        return self.kept.setdefault((images.data_ptr(), images.shape), MODEL(images))


def jpeg(images: Tensor) -> Tensor:
    return torch.from_numpy(np.round(images.detach().numpy() * 16) / 16)


class Backwards(torch.autograd.Function):
    """The identity, with its gradient's sign turned."""

    @staticmethod
    def forward(ctx, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx, *given: Tensor) -> Tensor:
        return -given[0]


UNFIT = {
    "probabilities": (lambda: after(lambda z: z.softmax(1)), "returned probabilities .* remove its last softmax"),
    "log-probabilities": (lambda: after(lambda z: z.log_softmax(1)), "returned log-probabilities"),
    "probabilities in float16": (lambda: after(lambda z: z.half().softmax(1)), "returned probabilities"),
    "probabilities in bfloat16": (lambda: after(lambda z: z.bfloat16().softmax(1)), "returned probabilities"),
    "log-probabilities in bfloat16": (lambda: after(lambda z: z.bfloat16().log_softmax(1)), "log-probabilities"),
    "infinite": (lambda: after(lambda z: z / 0), "NaN or infinity for 60 of 60 images"),
    "NaN for some": (lambda: before(lambda x: x / (x.flatten(1)[:, :5].amax(1) < 0.6)[:, None, None, None]), "NaN or"),
    "too few classes": (lambda: after(lambda z: z[:, :9]), r"\[60, 9\] for 60 images; expected logits \[60, 10\]"),
    "one logit": (lambda: after(lambda z: z[:, :1]), r"two classes, return torch.cat\(\[-logit, logit\], 1\)"),
    "squeezed": (lambda: after(lambda z: z.squeeze(0)), r"\[10\] for 1 images"),
    "another axis": (lambda: after(lambda z: z[None]), r"returned \[1, 60, 10\]"),
    "a tuple": (lambda: after(lambda z: (z, z)), "returned a tuple of 2; .*wrap it in a module"),
    "a dictionary": (lambda: after(lambda z: {"logits": z, "loss": 0}), "returned a dict with logits, loss"),
    "an output class": (lambda: after(lambda z: type("Output", (), {"logits": z})()), "returned a Output with .logits"),
    "an array": (lambda: after(lambda z: z.detach().numpy()), "returned a ndarray"),
    "integers": (lambda: after(lambda z: (1000 * z).long()), "returned int64; expected logits, floats"),
    "complex": (lambda: after(lambda z: z.to(torch.complex64)), "returned complex64"),
    "booleans": (lambda: after(lambda z: z > 0), "returned bool"),
    "other channels": (lambda: nn.Conv2d(3, 10, 8).eval(), r"raised RuntimeError on float32 images \[60, 1, 8, 8\]"),
    "an error of its own": (lambda: after(lambda z: {}["x"]), "raised KeyError .*resize or convert them inside"),
    "an exit": (lambda: after(lambda z: sys.exit(0)), "the model raised SystemExit on float32 images"),
    "half weights": (lambda: train_linear(IMAGES, LABELS, 10).half(), r"weights are float16, so call model.float\(\)"),
    "bfloat16 weights": (lambda: train_linear(IMAGES, LABELS, 10).bfloat16(), "weights are bfloat16"),
    "double weights": (lambda: train_linear(IMAGES, LABELS, 10).double(), "weights are float64"),
    "sparse": (lambda: after(lambda z: z.to_sparse()), "returned float32 in a sparse_coo tensor; expected logits"),
    "asks for the gradient mode": (
        lambda: Watchful(lambda images: torch.is_grad_enabled()).eval(),
        "other logits where a gradient is asked for, .* by up to .*what is attacked would not be what is judged",
    ),
    "asks its images": (lambda: Watchful(lambda images: images.requires_grad).eval(), "where a gradient is asked for"),
    "in place": (lambda: InPlace().eval(), "changes the images that it is given in place"),
    "noise": (lambda: noisy(MODEL), "different logits each time, by up to .* evaluate it as a randomised model"),
    "dropout": (lambda: Dropping().eval(), "different logits each time"),
    "its batch": (lambda: after(lambda z: z - z.mean(0)), "depend on the other images of the batch"),
    "BatchNorm without statistics": (
        lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), MODEL).eval(),
        "depend on the other images of the batch",
    ),
    "answers by memory": (lambda: Keeping().eval(), "other logits where they stand in another order"),
    "answers by row": (
        lambda: after(lambda z: z + (torch.arange(len(z)) == 40)[:, None] * z.roll(1, 1)),
        "other logits where they stand in another order, .*goes by their place in the batch",
    ),
    "no_grad": (lambda: NoGradient().eval(), "no gradient with respect to the image, .*torch.no_grad"),
    "inference_mode": (lambda: Inference().eval(), "no gradient with respect to the image"),
    "JPEG": (lambda: before(jpeg), r"no gradient with respect to the image, .*x \+ \(f\(x\) - x\).detach\(\)"),
    "comparison": (lambda: before(lambda x: (x > 0.5).float()), "no gradient with respect to the image"),
    "a table": (lambda: Table().eval(), "no gradient with respect to the image"),
    "NumPy without detach": (lambda: before(lambda x: torch.from_numpy(x.numpy())), "ask for a gradient .*NumPy"),
    "no backward": (lambda: before(NoBackward.apply), "cannot be computed .NotImplementedError: not needed"),
    "a backward of the wrong sign": (
        lambda: before(Backwards.apply),
        "loss falls along its own gradient on 32 of 32 images, .*Look at the sign",
    ),
    "NaN off the grid": (lambda: HalfBlind().eval(), "NaN or infinity for images moved inside of the ball"),
    "training": (lambda: nn.Sequential(MODEL, nn.Dropout(0.5)), "the model is in training mode"),
    "training inside": (
        lambda: nn.Sequential(MODEL, Stubborn()).eval(),
        "1 is in training mode, .*train or eval method",
    ),
    "meta": (lambda: nn.Linear(64, 10, device="meta").eval(), "meta device"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)).eval(), "not initialised: its lazy modules"),
    "a function": (lambda: MODEL.forward, "is a method; expected a torch.nn.Module: put what it computes"),
    "a lambda": (lambda: lambda images: MODEL(images), "is a function; expected a torch.nn.Module"),
    "a class": (lambda: NoGradient, "is the class NoGradient; .* call it"),
    "weights": (lambda: dict(MODEL.state_dict()), "is a dict; .*load_state_dict"),
    "chance": (lambda: after(lambda z: z.roll(1, 1)), "no better than chance: .*the order of its classes"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_model_that_cannot_be_judged_is_refused(name: str):
    model, message = UNFIT[name]
    with unchecked_types(), pytest.raises(ValueError, match=message):
        check(model())


STEEP = {
    "power": (lambda x: x.clamp(0, 1).pow(0.5), "clean images", "pow", "value 0"),
    "root": (lambda x: x.sqrt(), "clean images", "sqrt", "value 0"),
    "root of white": (lambda x: (1 - x).sqrt(), "clean images", "sqrt", "value 1"),
    "logarithm": (lambda x: (x * 0 + 1) * torch.where(x > 0, x.log(), 0.0), "clean images", "log", "value 0"),
    "arc cosine": (lambda x: (2 * x - 1).acos(), "clean images", "acos", "values from 0 to 1"),
    "norm": (
        lambda x: x.view(-1, 8, 8, 1).norm(dim=3).view(-1, 1, 8, 8) + (x - x[:, :, :1, :1]).pow(2).sqrt(),
        0,
        0,
        0,
    ),
    "where": (lambda x: torch.where(x > 0.1, x.log(), x), "clean images", "log", "value 0"),
}


@pytest.mark.parametrize("name", STEEP)
def test_a_gradient_that_is_not_finite_is_found_with_its_cause(name: str):
    change, where, function, value = STEEP[name]
    with pytest.raises(ValueError, match=r"loss is NaN or infinite for .* as \(x \+ 1e-6\).sqrt") as raised:
        check(before(change))
    said = str(raised.value)
    if where:
        assert f"{where}" in said
        assert f"first in the derivative of {function}" in said
        assert value in said


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_slope_is_looked_for_where_the_ball_reaches(norm):
    grey = IMAGES.clamp(20, 235)

    def steep(images: Tensor) -> Tensor:
        return images.sqrt() + (1 - images).sqrt()

    small = {"Linf": 0.05, "L2": 0.5, "L1": 5.0}[norm]
    check_model(before(steep), grey, None, classes=10, threat=ThreatModel(norm=norm, radius=small))
    with pytest.raises(ValueError, match=r"images moved .* of the ball, .*derivative of sqrt"):
        check_model(before(steep), grey, None, classes=10, threat=ThreatModel(norm="Linf", radius=0.1))


def test_a_randomised_model_is_held_to_all_but_sameness():
    check(noisy(MODEL), random=True)
    with pytest.raises(ValueError, match="returned probabilities"):
        check(Wrapped(noisy(MODEL), after=lambda z: z.softmax(1)).eval(), random=True)
    with pytest.raises(ValueError, match="no gradient with respect to the image"):
        check(Wrapped(noisy(MODEL), before=jpeg).eval(), random=True)


def test_noise_that_a_tolerance_for_kernels_would_let_pass_is_randomness():
    with pytest.raises(ValueError, match="different logits each time"):
        check(after(lambda z: z + 1e-3 * z.abs().max() * torch.randn_like(z)))


def test_labels_that_name_no_class_are_refused():
    with pytest.raises(ValueError, match=r"lie in \[1, 10\]; expected 0 to 9 for 10 classes: they count from 1"):
        check_model(MODEL, IMAGES, LABELS + 1, classes=10, threat=THREAT)


class Outside(nn.Module):
    """A model that expects standardised images, whose bright pixels lie between 1 and 3."""

    def forward(self, images: Tensor) -> Tensor:
        return MODEL((images - 1).relu() * (images < 3))


class Bytes(nn.Module):
    """A model that expects pixels in 0..255."""

    def forward(self, images: Tensor) -> Tensor:
        return MODEL(images.clamp(min=1) / 255)


@pytest.mark.parametrize("count", [60, 100, 200])
def test_normalisation_outside_of_the_model_is_seen(count: int):
    with pytest.raises(ValueError, match=rf"of {count} images in \[0, 1\], and on .* standardised; .*into forward"):
        check(Outside().eval(), count)
    with pytest.raises(ValueError, match=r"of the same images 0\.\.255; the model must take images in \[0, 1\]"):
        check(Bytes().eval(), count)
