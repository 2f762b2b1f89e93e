"""The binarization test (Zimmermann et al. 2022): an attack must find adversaries that are known to exist. Check 13.

Each image gets a readout of its own on the model's features, which tells random points inside of the ball from one
point on its border. That point is an adversary by construction, so a sound attack finds one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stages.evaluation.accuracy import device_of, evaluating, to_float
from stages.evaluation.checks.case import Case, Outcome, not_applicable
from stages.evaluation.checks.counts import exceeds
from stages.evaluation.checks.examined import CheckSize, Examined
from stages.evaluation.evidence import Check, Verdict
from stages.evaluation.finite import finite
from stages.evaluation.pgd import PGDConfig, draw_starts
from stages.rap import norms
from stages.rap.threat import ThreatModel

NAME = "binarization test"
INSIDE = 0.95  # of the radius: the inner points leave a shell to the border point
CLOSE = 0.9  # of the way from the last inner point to the border point: little room is left for luck
MISSED = 0.05  # share of known adversaries that an attack may miss and still pass
RIDGE = 1.0  # of the features' mean variance: no readout hangs on features that hardly vary


@dataclass(frozen=True, kw_only=True, eq=False)
class Readouts:
    """One linear readout an image: positive is the side of the point on the border."""

    weights: Float[Tensor, "image feature"]
    bias: Float[Tensor, " image"]
    separable: Bool[Tensor, " image"]
    """Where the border point is told from all inner points."""


def check_binarization(case: Case) -> Outcome:
    """Check 13: PGD on the difference of the two logits finds the adversary that each binarized readout has.

    Fails where more than 5 % are missed beyond chance, and warns where more are missed but chance may explain it. The
    share that as many random points find is told beside it: where that is high, the test was easy. Not applicable
    without a last linear layer that reads the features out once, or where fewer than half of the readouts can be made.
    """
    examined = case.examined.first(case.size.binarized)
    layer = last_linear(examined)
    if layer is None:
        return not_applicable(13, NAME, "the model has no linear layer that is run once and gives its classes")
    device = device_of(examined.model)
    clean = to_float(examined.images).to(device)
    with evaluating(examined.model):
        readouts = binarize(examined, layer, clean, case.size)
        images = int(readouts.separable.sum())
        if 2 * images < len(clean):
            return not_applicable(
                13, NAME, f"only {images} of {len(clean)} images have features that a readout can separate"
            )
        found = attack_readouts(examined, layer, clean, readouts, case.size)
        lucky = _try_random(examined, layer, clean, readouts, case.size)
    missed = int((readouts.separable & ~found).sum())
    verdict: Verdict = "warn" if missed > MISSED * images else "pass"
    if exceeds(missed, images, MISSED):
        verdict = "fail"
    by_chance = int((readouts.separable & lucky).sum())
    check = Check(
        13,
        NAME,
        verdict,
        f"{images - missed} of {images} known adversaries found, {by_chance} by random points",
        images=images,
        says={
            "pass": "The attack finds adversaries that are known to exist.",
            "warn": "The attack misses some adversaries that are known to exist.",
            "fail": "The attack misses adversaries that are known to exist: it proves no robustness.",
        }[verdict],
        evidence={"found": images - missed, "known": images, "found by random points": by_chance},
    )
    return Outcome(check=check)


def last_linear(examined: Examined) -> nn.Linear | None:
    """The linear layer that is run last, where it is run once and has one output a class; None otherwise."""
    ran: list[nn.Module] = []
    handles = [
        part.register_forward_hook(lambda layer, *_: ran.append(layer))
        for part in examined.model.modules()
        if isinstance(part, nn.Linear)
    ]
    try:
        with torch.no_grad(), evaluating(examined.model):
            classes = examined.model(to_float(examined.images[:1]).to(device_of(examined.model))).shape[1]
    finally:
        for handle in handles:
            handle.remove()
    if not ran or ran.count(ran[-1]) > 1:
        return None
    last = ran[-1]
    return last if isinstance(last, nn.Linear) and last.out_features == classes else None


def binarize(
    examined: Examined, layer: nn.Linear, clean: Float[Tensor, "image channel height width"], size: CheckSize
) -> Readouts:
    """The readout of each image: the direction that best tells its border point from the inner ones.

    Fisher's linear discriminant, with the threshold close to the border point.
    """
    threat, rows = examined.threat, examined.rows
    inside = ThreatModel(norm=threat.norm, radius=INSIDE * threat.radius)
    inner = [clean] + [
        draw_starts(clean, inside, rows=rows, restart=number, seed=size.seed + 1) for number in range(size.inner)
    ]
    with torch.no_grad():
        within = torch.stack([features(examined.model, layer, points).double() for points in inner], dim=1)
        border = features(examined.model, layer, _on_border(examined, clean, size.seed)).double()
    centre = within.mean(1)
    spread = within - centre[:, None]
    covariance = spread.transpose(1, 2) @ spread / within.shape[1]
    variance = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(torch.float64).tiny)
    ridge = torch.eye(covariance.shape[1], dtype=torch.float64, device=clean.device) * RIDGE
    weights = torch.linalg.solve(covariance / variance[:, None, None] + ridge, border - centre)
    highest = (within * weights[:, None]).sum(2).amax(1)
    reached = (border * weights).sum(1)
    gap = reached - highest
    noise = 1e-4 * (reached - (centre * weights).sum(1)).abs()  # of the distance: float32 features are no finer
    scale = weights.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    return Readouts(
        weights=(weights / scale[:, None]).float(),
        bias=(-(highest + CLOSE * gap) / scale).float(),
        separable=gap > noise,
    )


def attack_readouts(
    examined: Examined,
    layer: nn.Linear,
    clean: Float[Tensor, "image channel height width"],
    readouts: Readouts,
    size: CheckSize,
) -> Bool[Tensor, " image"]:
    """True where the long PGD, from as many starts as it has restarts, crosses the readout."""
    config = PGDConfig(steps=size.steps)
    found = torch.zeros_like(readouts.separable)
    for restart in range(size.restarts):
        states = draw_starts(clean, examined.threat, rows=examined.rows, restart=restart, seed=size.seed)
        for _ in range(config.steps):
            leaf = states.detach().requires_grad_(True)
            with torch.enable_grad():
                margin = _margin(features(examined.model, layer, leaf), readouts)
                (gradient,) = torch.autograd.grad(margin.sum(), leaf, allow_unused=True, materialize_grads=True)
            found |= margin.detach() > 0
            if bool((found | ~readouts.separable).all()):
                return found
            length = config.step(examined.threat)
            states = norms.step(states, finite(gradient), clean, examined.threat, length)
        with torch.no_grad():
            found |= _margin(features(examined.model, layer, states), readouts) > 0
    return found


def features(
    model: nn.Module, layer: nn.Linear, images: Float[Tensor, "image channel height width"]
) -> Float[Tensor, "image feature"]:
    """What the layer reads when the model is run on images."""
    with _listening(layer) as heard:
        model(images)
    return heard[-1].flatten(1)


def _margin(found: Float[Tensor, "image feature"], readouts: Readouts) -> Float[Tensor, " image"]:
    return (found * readouts.weights).sum(1) + readouts.bias


def _try_random(
    examined: Examined,
    layer: nn.Linear,
    clean: Float[Tensor, "image channel height width"],
    readouts: Readouts,
    size: CheckSize,
) -> Bool[Tensor, " image"]:
    found = torch.zeros_like(readouts.separable)
    with torch.no_grad():
        for number in range(size.draws):
            points = draw_starts(clean, examined.threat, rows=examined.rows, restart=number, seed=size.seed + 2)
            found |= _margin(features(examined.model, layer, points), readouts) > 0
    return found


def _on_border(
    examined: Examined, clean: Float[Tensor, "image channel height width"], seed: int
) -> Float[Tensor, "image channel height width"]:
    """A random point on the border of each image's ball (for L-inf, a corner), clamped to [0, 1]."""
    return norms.draw_on_border(clean, examined.threat, examined.rows, "binarization", seed).clamp(0, 1)


@contextmanager
def _listening(layer: nn.Linear) -> Iterator[list[Tensor]]:
    heard: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    try:
        yield heard
    finally:
        handle.remove()
