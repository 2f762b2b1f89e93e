"""What a model must be before anyone attacks it, or trains in front of it: a map from [0, 1] images to logits.

The one contract of evaluation, of a run's classifier and of training in a notebook. Whatever fails it is refused before
work starts, with what was found and what to do.
"""

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stages import numerics
from stages.data.images import check_labels
from stages.evaluation.accuracy import device_of, evaluating, to_float
from stages.evaluation.checks.counts import at_least
from stages.evaluation.derivative import PROBED, check_gradient
from stages.rap.threat import ThreatModel

ALONE = 8  # images that are asked alone, as each is a call

SURE = 1e-3  # chance that a sound model is refused by an accuracy, in each test of one
WORSE = 0.05  # of accuracy: what normalisation outside of the model costs at least
BETTER = 0.2  # of the way from chance to 1: a model of less is hardly worth an attack


@numerics.verdict()
def check_model(
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"] | None,
    *,
    classes: int,
    threat: ThreatModel,
    random: bool = False,
) -> None:
    """Passes a model that can be attacked and judged in a ball, by its answers to some images; 200 are enough.

    It must be a module in eval mode that gives finite logits [image, class], the same ones again, for an image alone
    and where a gradient is asked for unless it is ``random``, with a finite gradient to the image on the images and
    around them. With ``labels``, which a trained model needs, it must not be better on images that were standardised
    or lie in 0..255, as it is when normalisation lies outside, nor as bad as chance; neither is held against it where
    so few images can't tell.

    Raises ValueError that says what was found and what to do. Leaves the model as it was.
    """
    check_module(model)
    if labels is not None:
        check_labels(labels, classes=classes)
    pixels = to_float(images).to(device_of(model))
    with evaluating(model):
        with torch.no_grad():
            logits = _logits(model, pixels, classes).clone()  # a model may write its next answers where these stand
            _check_probabilities(logits)
            if not random:
                _check_again(model, pixels, logits)
                _check_moved(model, pixels, logits)
                _check_alone(model, pixels, logits)
        check_gradient(model, images, threat)
        if not random:
            _check_attacked(model, pixels[:PROBED], logits[:PROBED])
        if labels is not None:
            with torch.no_grad():
                _check_accuracy(model, pixels, labels.to(pixels.device), logits)


def check_module(model: object) -> None:
    """Raise ValueError unless it is a module, in eval mode, with weights."""
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        remedy = "call it, to make the network" if isinstance(model, type) else "put what it computes into its forward"
        if isinstance(model, dict):
            remedy = "build the network and load these weights into it with load_state_dict"
        raise ValueError(  # noqa: TRY004 - as all that is wrong with a model
            f"the model is {kind}; expected a torch.nn.Module: {remedy}"
        )
    check_values(model, "the model")
    if _is_exported(model):
        raise ValueError(
            "the model was exported by torch.export, with its batch size and mode fixed, and has no eval mode: pass "
            "the module that was exported"
        )
    parts = model.named_modules()  # those of a frozen TorchScript module have no mode
    training = next((name or "the model" for name, part in parts if getattr(part, "training", False)), None)
    if training:
        raise ValueError(
            f"{training} is in training mode, so it is not what will be used: call model.eval(), and look for a train "
            "or eval method of its own if it was called"
        )


def check_values(network: nn.Module, called: str) -> None:
    """Raise ValueError unless all weights of a network have values."""
    weights = [*network.parameters(), *network.buffers()]
    if any(is_lazy(weight) for weight in weights):
        raise ValueError(
            f"{called} is not initialised: its lazy modules know their shapes, and have weights, once it was called "
            "with an image; call it so, then load its weights"
        )
    if any(weight.is_meta for weight in weights):
        raise ValueError(
            f"{called} lies on the meta device, without values: build it on a real device and load its weights"
        )


def _is_exported(model: nn.Module) -> bool:
    """Whether torch.export made it: its eval and train are replaced by what raises NotImplementedError."""
    return any(isinstance(part, torch.fx.GraphModule) and "eval" in vars(part) for part in model.modules())


def answer_of(model: nn.Module, pixels: Float[Tensor, "image channel height width"]) -> object:
    """Whatever the model answers. Raises ValueError, with the reason, where it raises or changes the images."""
    given = pixels.clone()
    try:
        answer = model(given)
    except torch.OutOfMemoryError:
        raise
    except (Exception, SystemExit) as error:  # whatever anybody's forward may raise
        raise ValueError(
            f"the model raised {type(error).__name__} on float32 images {list(pixels.shape)}, [image, channel, height, "
            f"width] in [0, 1] ({error}): {_remedy(model)}"
        ) from error
    if not torch.equal(given, pixels):
        raise ValueError(
            "the model changes the images that it is given in place, and so what is attacked: compute new ones in its "
            "forward, such as x = x - mean in place of x -= mean"
        )
    return answer


@numerics.verdict()
def classes_of(model: nn.Module, images: UInt8[Tensor, "image channel height width"]) -> int | None:
    """The columns of the model's answer to the first image; None where it has no two of them. Raises ValueError where
    it has no answer."""
    with torch.no_grad(), evaluating(model):
        answer = answer_of(model, to_float(images[:1]).to(device_of(model)))
    return answer.shape[1] if isinstance(answer, Tensor) and answer.ndim == 2 and answer.shape[1] > 1 else None


def _remedy(model: nn.Module) -> str:
    kinds = {weight.dtype for weight in model.parameters() if weight.is_floating_point()} - {torch.float32}
    if kinds:
        weights = ", ".join(str(kind).removeprefix("torch.") for kind in kinds)
        return (
            f"its weights are {weights}, so call model.float(), or convert the images inside its forward if it is to "
            "be attacked in that precision"
        )
    return "resize or convert them inside its forward"


def _logits(model: nn.Module, pixels: Tensor, classes: int) -> Float[Tensor, "image class"]:
    """The model's answer, if it is logits. Raises ValueError for anything else."""
    logits, images = answer_of(model, pixels), len(pixels)
    expected = f"expected logits [{images}, {classes}], one row an image and one column for each class of the data"
    if not isinstance(logits, Tensor):
        raise ValueError(  # noqa: TRY004 - as all that is wrong with a model
            f"the model returned {_described(logits)}; {expected}: return them from its forward, or wrap it in a "
            "module that does"
        )
    if tuple(logits.shape) != (images, classes):
        single = ": of a single logit for two classes, return torch.cat([-logit, logit], 1)"
        raise ValueError(
            f"the model returned {list(logits.shape)} for {images} images; {expected}"
            f"{single if tuple(logits.shape[1:]) in ((), (1,)) else ''}"
        )
    if not logits.is_floating_point() or logits.layout != torch.strided:
        found = f"{logits.dtype} in a {logits.layout} tensor".replace("torch.", "").replace(" in a strided tensor", "")
        raise ValueError(
            f"the model returned {found}; expected logits, floats with a gradient: return the values from before they "
            "are rounded, compared, or made complex or sparse"
        )
    finite = torch.isfinite(logits).all(1)
    if not bool(finite.all()):
        raise ValueError(
            f"the model returned NaN or infinity for {int((~finite).sum())} of {images} images; its logits must be "
            "finite: look at its weights and its normalisation"
        )
    return logits


def _described(answer: object) -> str:
    kind = f"a {type(answer).__name__}"
    if isinstance(answer, tuple | list):
        return f"{kind} of {len(answer)}"
    if isinstance(answer, dict):
        return f"{kind} with {', '.join(map(str, answer))}"
    return f"{kind} with .logits" if hasattr(answer, "logits") else kind


def _check_probabilities(logits: Float[Tensor, "image class"]) -> None:
    coarse = any(torch.equal(logits, logits.to(kind).to(logits)) for kind in (torch.bfloat16, torch.float16))
    # What rows of probabilities and of log-probabilities differ by from 1, by rounding, in bfloat16 and in float32
    tolerance = 2**-6 if coarse else 1e-5
    for kind, values in (("probabilities", logits), ("log-probabilities", logits.exp())):
        if bool((values >= 0).all() and ((values.sum(1) - 1).abs() < tolerance).all()):
            raise ValueError(
                f"the model returned {kind} (each row sums to 1), whose gradients vanish; it must return logits: "
                "remove its last softmax"
            )


def _check_again(model: nn.Module, pixels: Tensor, logits: Tensor) -> None:
    difference = _difference(_logits(model, pixels, logits.shape[1]), logits)
    if difference > numerics.SAME * logits.abs().max().item():
        raise ValueError(
            f"the model gives the same images different logits each time, by up to {difference:g}, in eval mode: an "
            "attack would chase its noise. Remove its randomness (functional dropout without training=self.training, "
            'added noise), or evaluate it as a randomised model (AutoAttack version "rand")'
        )


def _check_moved(model: nn.Module, pixels: Tensor, logits: Tensor) -> None:
    given = pixels.clone()
    model(given)
    given.copy_(pixels.flip(0))  # in the memory of the last ones, as an attack's next images may be
    difference = _difference(model(given), logits.flip(0))
    if not difference <= numerics.SAME_ALONE * logits.abs().max().item():
        raise ValueError(
            f"the model gives images other logits where they stand in another order, by up to {difference:g}: it keeps "
            "answers by the place of images in memory, or goes by their place in the batch. Its forward must look at "
            "the values alone"
        )


def _difference(logits: Tensor, others: Tensor) -> float:
    return (logits - others).abs().max().item()


def _check_alone(model: nn.Module, pixels: Tensor, logits: Tensor) -> None:
    for number, image in enumerate(pixels[:ALONE].split(1)):
        alone = _logits(model, image, logits.shape[1])
        difference = (logits[number] - alone[0]).abs().max().item()
        if difference > numerics.SAME_ALONE * logits.abs().max().item():
            raise ValueError(
                f"the model's logits for an image depend on the other images of the batch, by up to {difference:g}; "
                "each image must be answered alone: use BatchNorm with running statistics, in eval mode"
            )


def _check_attacked(model: nn.Module, pixels: Tensor, logits: Tensor) -> None:
    with torch.enable_grad():
        attacked = _logits(model, pixels.clone().requires_grad_(True), logits.shape[1]).detach()
    difference = (attacked - logits).abs().max().item()
    if difference > numerics.SAME_ALONE * logits.abs().max().item():
        raise ValueError(
            "the model gives the same images other logits where a gradient is asked for, as an attack does, by up to "
            f"{difference:g}: what is attacked would not be what is judged. Take what depends on torch.is_grad_enabled "
            "or requires_grad out of its forward"
        )


def _check_accuracy(model: nn.Module, pixels: Tensor, labels: Tensor, logits: Tensor) -> None:
    right = logits.argmax(1) == labels
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3), keepdim=True, correction=0)
    # 1e-3: a channel that is constant over the sample cannot be divided by its deviation
    outside = {"standardised": (pixels - mean) / std.clamp(min=1e-3), "0..255": pixels * 255}
    found = {name: hits for name, inputs in outside.items() if (hits := _hits(model, inputs, labels)) is not None}
    best = max(found, key=lambda name: int(found[name].sum()), default="")
    remedy = "the model must take images in [0, 1] and normalise inside: put its normalisation into forward"
    if best and is_better(found[best], right):
        raise ValueError(
            f"the model is right on {int(right.sum())} of {len(labels)} images in [0, 1], and on "
            f"{int(found[best].sum())} of the same images {best}; {remedy}"
        )
    if is_chance(int(right.sum()), len(labels), logits.shape[1]):
        raise ValueError(
            f"the model is right on {int(right.sum())} of {len(labels)} images of {logits.shape[1]} classes, no better "
            f"than chance: look at its weights, the order of its classes and the labels; {remedy}"
        )


def _hits(model: nn.Module, inputs: Tensor, labels: Tensor) -> Bool[Tensor, " image"] | None:
    try:
        return model(inputs).argmax(1) == labels
    except Exception:  # a model may well refuse pixels outside of [0, 1]
        return None


def is_better(other: Bool[Tensor, " image"], right: Bool[Tensor, " image"]) -> bool:
    """Whether a model is better on other inputs than on the images, beyond chance and by 5 points.

    The exact sign test on the images of which only one is right (McNemar 1947), one-sided at `SURE`.
    """
    gained, lost = int((other & ~right).sum()), int((right & ~other).sum())
    return gained - lost > WORSE * len(right) and at_least(gained, gained + lost, 0.5) < SURE


def is_chance(right: int, images: int, classes: int) -> bool:
    """Whether so few right answers are what guessing gives, and not what a model gives that is of any use.

    Two exact binomial tails: as many by chance are likely (5 %), and as few of a model a fifth of the way from chance
    to certainty are not (`SURE`). So few images that can't tell the two apart never hold.
    """
    chance = 1 / classes
    useful = chance + BETTER * (1 - chance)
    return at_least(right, images, chance) > 0.05 and at_least(images - right, images, 1 - useful) < SURE
