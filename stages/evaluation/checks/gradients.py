"""Is the gradient the derivative of the model, and does it lead anywhere? Checks 2 and 10."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stages import randomness
from stages.evaluation.accuracy import device_of, evaluating, to_float
from stages.evaluation.autoattack import SQUARE_ALONE
from stages.evaluation.checks.attacking import cross_entropy_gradient, fixed_seed
from stages.evaluation.checks.case import Case, Outcome, not_applicable
from stages.evaluation.checks.counts import exceeds
from stages.evaluation.checks.examined import Examined, on_device
from stages.evaluation.checks.surrogates import straight_through
from stages.evaluation.evidence import Check, Verdict
from stages.evaluation.pgd import draw_starts
from stages.nets.copies import CopyError, copied
from stages.rap import losses

TINY = 1e-7  # of a pixel: in float64, far from rounding (1e-16), and small enough to meet few kinks
GREY_LEVEL = 1 / 255
AGREEMENT = 1e-3  # relative: central differences of smooth pieces agree to about 1e-8, so this leaves kinks only
ROUNDING = 1e3 * torch.finfo(torch.float64).eps / TINY  # of the largest logit: sums of 1e6 terms, divided by TINY
NEAR = 2.0  # factor by which a grey level's change may differ from what the gradient predicts
PROBABILITIES = 1e-5  # as in AutoAttack's check_range_output


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientComparison:
    """For each image, whether gradient and differences agree; at a random point of the ball, in float64."""

    agrees: Bool[np.ndarray, " image"]
    """In every random direction, with differences over 1e-7."""
    agrees_at_grey_level: Bool[np.ndarray, " image"]
    """In the steepest direction of L-inf, with the change over 1/255, to a factor of 2."""
    zero: Bool[np.ndarray, " image"]
    """The gradient is zero in every pixel."""
    largest_error: float
    """The largest relative difference of the two derivatives in a random direction."""


def check_gradient(case: Case) -> Outcome:
    """Check 2: the gradient of the margin is its derivative, and still describes it one grey level away.

    Compares directional derivatives of a float64 copy of the model with central differences over 1e-7, and the change
    over 1/255 along the sign of the gradient with the one that it predicts. Fails where more than the tolerated share
    of images disagree in either. A zero gradient warns: of the margin in float64, or of the cross-entropy in the
    model's own precision, which is what most attacks climb. A robust classifier is examined with the true derivative of
    its clamp, also where it is attacked through the identity; a randomised model draws the same numbers throughout.

    Not applicable to a model that cannot be run in float64.
    """
    examined = case.examined.first(case.size.gradient_images)
    images = len(examined.images)
    try:
        comparison = compare_gradients(examined, directions=case.size.directions, seed=case.size.seed)
    except (RuntimeError, CopyError) as error:  # the first is PyTorch's where types do not meet
        return not_applicable(2, "gradient", f"the model cannot be run in float64 ({error})")
    stalled = int((comparison.zero | zero_gradients(examined, case.size.seed)).sum())
    wrong, far = int((~comparison.agrees).sum()), int((~comparison.agrees_at_grey_level).sum())
    verdict: Verdict = "warn" if stalled else "pass"
    if exceeds(wrong, images) or exceeds(far, images):
        verdict = "fail"
    says = "The gradient is the derivative, and describes the model one grey level away."
    if verdict == "warn":
        says = "Gradients vanish (saturation), which stops attacks that follow them; it is no robustness."
    elif exceeds(wrong, images):
        says = "The gradient is not the derivative of the model: attacks follow something else."
    elif verdict == "fail":
        says = "The gradient says nothing about the model one grey level away: it is shattered, or rounded off."
    check = Check(
        2,
        "gradient",
        verdict,
        f"{wrong} of {images} images disagree, {far} at 1/255; {stalled} have a zero gradient",
        images=images,
        says=says,
        evidence={
            "directions": case.size.directions,
            "disagree": wrong,
            "disagree at 1/255": far,
            "zero gradient of the margin, float64": int(comparison.zero.sum()),
            "zero gradient of the margin or the cross-entropy": stalled,
            "largest relative error": comparison.largest_error,
        },
    )
    return Outcome(check=check)


def compare_gradients(examined: Examined, *, directions: int, seed: int) -> GradientComparison:
    """Gradient against differences at a random point of each image's ball.

    Raises RuntimeError where the model cannot be run in float64, and CopyError where it cannot be copied.
    """
    model, labels = copied(examined.model).double(), examined.labels.to(device_of(examined.model))
    clean = to_float(examined.images).double().to(labels.device)
    points = draw_starts(clean, examined.threat, rows=examined.rows, restart=0, seed=seed)
    points = points.clamp(GREY_LEVEL, 1 - GREY_LEVEL)  # so that both ends of a difference are images

    def margins(states: Tensor) -> Tensor:
        with fixed_seed(seed, states.device):
            return losses.margin(model(states), labels)

    with evaluating(model), straight_through(model, lambda before: False):
        leaf = points.requires_grad_(True)
        with torch.enable_grad(), fixed_seed(seed, labels.device):
            logits = model(leaf)
            margin = losses.margin(logits, labels)
            (gradient,) = torch.autograd.grad(margin.sum(), leaf, allow_unused=True, materialize_grads=True)
        floor = ROUNDING * logits.detach().abs().amax(1)
        with torch.no_grad():
            agrees, largest = torch.ones_like(labels, dtype=torch.bool), 0.0
            for number in range(directions):
                way = _direction(points, examined.rows, number, seed)
                said = (gradient * way).flatten(1).sum(1)
                found = (margins(points + TINY * way) - margins(points - TINY * way)) / (2 * TINY)
                size = torch.maximum(said.abs(), found.abs())
                error = (said - found).abs()
                agrees &= error <= AGREEMENT * size + floor
                largest = max(largest, float((error / (size + floor)).max()))
            zero = gradient.flatten(1).abs().amax(1) == 0
            way = torch.where(zero[:, None, None, None], _direction(points, examined.rows, 0, seed), gradient).sign()
            said = GREY_LEVEL * (gradient * way).flatten(1).sum(1)
            found = margins(points + GREY_LEVEL * way) - margin.detach()
            near = (found <= NEAR * said + floor * TINY) & (found >= said / NEAR - floor * TINY)
    return GradientComparison(
        agrees=agrees.numpy(force=True),
        agrees_at_grey_level=near.numpy(force=True),
        zero=zero.numpy(force=True),
        largest_error=largest,
    )


def zero_gradients(examined: Examined, seed: int) -> Bool[np.ndarray, " image"]:
    """Where the cross-entropy of the model as it is has no gradient at all, at the image or a random point near it."""
    images, labels = on_device(examined)
    near = draw_starts(images, examined.threat, rows=examined.rows, restart=0, seed=seed)
    with evaluating(examined.model):
        found = [
            (cross_entropy_gradient(examined.model, states[part], labels[part]) == 0).flatten(1).all(1)
            for part in torch.arange(len(images)).split(128)
            for states in (images, near)
        ]
    return (torch.cat(found[0::2]) | torch.cat(found[1::2])).numpy(force=True)


def check_flags(case: Case) -> Outcome:
    """Check 10: AutoAttack's warnings (Croce & Hein 2020), over all images rather than chunk by chunk.

    Randomness, gradients inside of ``forward``, probabilities in place of logits, zero gradients, and Square alone
    breaking more than 0.2 %. Those that AutoAttack gave, where it was run, are kept beside them. Any of them warns.
    """
    found = _own_flags(case)
    given = [flag for flag in case.examined.flags if flag.split(":")[0] not in found]
    flags = [*found.values(), *given]
    check = Check(
        10,
        "AutoAttack's flags",
        "warn" if flags else "pass",
        f"{len(flags)} flags"
        + (f": {', '.join([*found, *([case.examined.autoattack] if given else [])])}" if flags else ""),
        images=case.images,
        says=f"{'; '.join(flags)}." if flags else f"No flag on {case.images} images.",
        evidence={"recomputed": found, "given": list(case.examined.flags)},
    )
    return Outcome(check=check)


def _own_flags(case: Case) -> dict[str, str]:
    flags: dict[str, str] = {}
    if case.behaviour.random:
        flags["random"] = 'the model answers the same images differently: version "rand" is the one for it'
    if case.behaviour.adaptive:
        flags["dynamic"] = "the model takes gradients in its forward pass, an adaptive defence"
    if _returns_probabilities(case):
        flags["probabilities"] = "the model returns probabilities, whose gradients vanish, instead of logits"
    zero = int(zero_gradients(case.examined, case.size.seed).sum())
    if zero:
        flags["zero gradients"] = f"{zero} of {case.images} images have a zero gradient of the cross-entropy"
    alone, images = case.square_alone
    if alone > SQUARE_ALONE * images and not case.behaviour.random:
        flags["square"] = f"{alone} of {images} images were broken by Square alone, which uses no gradients"
    return flags


def _returns_probabilities(case: Case) -> bool:
    images = on_device(case.examined)[0]
    with torch.no_grad(), evaluating(case.examined.model):
        logits = torch.cat([case.examined.model(part) for part in images.split(case.size.batch)])
    in_range = logits.min() > -PROBABILITIES and logits.max() < 1 + PROBABILITIES
    return bool(in_range and ((logits.sum(1) - 1).abs() < PROBABILITIES).all())


def _direction(
    like: Float[Tensor, "image channel height width"], rows: Int64[np.ndarray, " image"], number: int, seed: int
) -> Float[Tensor, "image channel height width"]:
    """A random direction for each image, whose pixels have a size of about 1."""
    drawn = [randomness.normal(like[0].numel(), "gradient check", seed, number, int(row)) for row in rows]
    return torch.from_numpy(np.stack(drawn)).to(like).reshape(like.shape)
