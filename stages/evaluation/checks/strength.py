"""Is the attack as strong as it should be? Checks 3 to 6, 11 and 12 (Carlini et al. 2019, Sections 4 and 5)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.attacks import Attack, AttackResult
from stages.evaluation.checks.attacking import attack_examined, attack_white_box
from stages.evaluation.checks.case import Case, Outcome, not_applicable
from stages.evaluation.checks.counts import alone, exceeds, judge_zero, outnumbers
from stages.evaluation.evidence import Check, Curve, Verdict
from stages.evaluation.pgd import PGDConfig, draw_starts
from stages.evaluation.verdict import misclassified
from stages.rap import norms
from stages.rap.threat import ThreatModel

RADIUS = "radius (pixels in [0, 1])"
UNDEFENDED = (
    0.05  # what "about 0" allows: digits have strokes as dark as the ball is wide, and some images remain robust
)
FEWEST = 5  # discordant images from which on a sign test can tell two attacks apart at 5 %


def check_order(case: Case) -> Outcome:
    """Check 3: FGSM, PGD of few steps, of many, with restarts, and AutoAttack break more and more, image by image.

    Of each neighbouring pair, fails where the weaker attack wins more images than it loses beyond chance, and warns
    where it alone breaks more than the tolerated share of images: the stronger attack then misses what is there. Of a
    randomised model, luck does that too, and it does not warn. AutoAttack takes part where its verdicts are given for
    all images.
    """
    attack = case.white_box
    order = {result.name: result.robust for result in (attack.fgsm, attack.short, attack.long, attack.restarted)}
    if len(case.examined.broken_by) == case.images:
        order[case.examined.autoattack] = np.array([by is None for by in case.examined.broken_by])
    accuracies = {name: Accuracy.from_mask(mask) for name, mask in order.items()}
    counts = {
        f"{weak} > {strong}": (alone(order[weak], order[strong]), alone(order[strong], order[weak]))
        for weak, strong in pairwise(order)
    }
    verdict: Verdict = "pass"
    if not case.behaviour.random and any(exceeds(weaker, case.images) for weaker, _ in counts.values()):
        verdict = "warn"
    if any(outnumbers(weaker, stronger) for weaker, stronger in counts.values()):
        verdict = "fail"
    check = Check(
        3,
        "stronger attacks break more",
        verdict,
        ", ".join(f"{name} {100 * accuracy.value:.1f} %" for name, accuracy in accuracies.items()),
        images=case.images,
        says={
            "pass": "Each attack breaks what the weaker one before it breaks.",
            "warn": "A weaker attack breaks images that the stronger one misses: the stronger one gets stuck.",
            "fail": "A weaker attack is the stronger one: gradients lead astray, and the accuracy is overestimated.",
        }[verdict],
        evidence={
            **{name: accuracy.as_json() for name, accuracy in accuracies.items()},
            "broken by the weaker, the stronger alone": {name: list(pair) for name, pair in counts.items()},
        },
    )
    points = tuple((float(steps), result.accuracy) for steps, result in _by_steps(case))
    curve = Curve(name="PGD, one random start", x="gradient steps", points=points)
    return Outcome(check=check, curves=(curve,), results=case.white_box.results)


def check_iterations(case: Case) -> Outcome:
    """Check 4: twice the steps from the same starts do not break more than the tolerated share of images more."""
    long, doubled = case.white_box.long, case.white_box.doubled
    gained, lost = alone(doubled.robust, long.robust), alone(long.robust, doubled.robust)
    converged = not (exceeds(gained, case.images) and outnumbers(gained, lost))
    check = Check(
        4,
        "twice the iterations",
        "pass" if converged else "fail",
        f"{gained} of {case.images} images more, {lost} fewer",
        images=case.images,
        says="The attack has converged."
        if converged
        else "The attack has not converged: give it more steps, or another step size.",
        evidence={
            long.name: long.accuracy.as_json(),
            doubled.name: doubled.accuracy.as_json(),
            "newly broken": gained,
            "no longer broken": lost,
        },
    )
    return Outcome(check=check)


def check_radius(case: Case) -> Outcome:
    """Check 5: accuracy falls with the radius, to nothing where the ball holds every image.

    The largest radius is 1 for L-inf and sqrt(pixels) / 2, the distance to grey at most, for L2. Fails where more than
    the tolerated share of images remain robust there, or where a larger ball breaks fewer images beyond chance.
    """
    examined, size = case.examined, case.size
    norm, radius = examined.threat.norm, examined.threat.radius
    largest = 1.0 if norm == "Linf" else math.sqrt(examined.images[0].numel()) / 2
    wider = np.geomspace(radius, max(largest, radius), size.radii).tolist()
    radii = [radius / 4, radius / 2, radius, *wider[1:-1], max(largest, radius)]  # the ends without rounding
    config = PGDConfig(steps=size.short_steps, seed=size.seed)
    results = [case.run_pgd(config, threat=ThreatModel(norm=norm, radius=each)) for each in radii]
    risen = [
        (radii[i + 1], alone(results[i].robust, results[i + 1].robust), alone(results[i + 1].robust, results[i].robust))
        for i in range(len(radii) - 1)
    ]
    left = int(results[-1].robust.sum())
    verdict = judge_zero(left, case.images)
    if any(outnumbers(fewer, more) for _, fewer, more in risen):
        verdict = "fail"
    points = ((0.0, Accuracy.from_mask(case.clean)), *((r, a.accuracy) for r, a in zip(radii, results, strict=True)))
    check = Check(
        5,
        "accuracy against radius",
        verdict,
        f"{left} of {case.images} images remain robust at radius {radii[-1]:.3g}",
        images=case.images,
        says={
            "pass": "Accuracy falls to nothing as the ball grows.",
            "warn": "A few images remain robust in a ball that holds every image: the attack misses some.",
            "fail": "Images remain robust where anything is allowed: the attack fails, not the images.",
        }[verdict],
        evidence={"radius": radii, "accuracy": [result.accuracy.as_json() for result in results]},
    )
    curve = Curve(name=f"PGD-{config.steps}", x=RADIUS, points=points)
    inside = tuple(result for each, result in zip(radii, results, strict=True) if each < radius)
    return Outcome(check=check, curves=(curve,), results=inside)


def check_unbounded(case: Case) -> Outcome:
    """Check 6: the long attack in a ball that holds every image breaks all of them."""
    norm = case.examined.threat.norm
    whole = ThreatModel(norm=norm, radius=1.0 if norm == "Linf" else math.sqrt(case.examined.images[0].numel()))
    result = case.run_pgd(PGDConfig(steps=case.size.steps, seed=case.size.seed), threat=whole)
    left = int(result.robust.sum())
    verdict = judge_zero(left, case.images)
    check = Check(
        6,
        "unbounded attack",
        verdict,
        f"{case.images - left} of {case.images} images broken",
        images=case.images,
        says={
            "pass": "With no bound, every image is broken.",
            "warn": "With no bound, a few images remain robust: the attack misses some.",
            "fail": "With no bound, images remain robust: the attack cannot follow the gradients of this model.",
        }[verdict],
        evidence={"remaining": left, "radius": whole.radius, "accuracy": result.accuracy.as_json()},
    )
    return Outcome(check=check)


def check_noise(case: Case) -> Outcome:
    """Check 11: many random points of the ball, half of them on its border, break far fewer images than PGD.

    Passes where PGD is the stronger beyond chance, fails where it is not, and warns where noise breaks an image that no
    gradient broke (of a randomised model, luck does that too, and it does not). Not applicable where the two differ on
    too few images to tell: of a very robust model, noise finds the few images that can be broken as well.
    """
    noise = attack_examined(
        case.examined, case.size, f"{case.size.draws} random points", lambda part: _random_points(case, part)
    )
    pgd = case.white_box.restarted
    by_noise, by_pgd = (int((case.clean & ~result.robust).sum()) for result in (noise, pgd))
    only_noise, only_pgd = alone(noise.robust, pgd.robust), alone(pgd.robust, noise.robust)
    missed = int((case.remaining & ~noise.robust).sum())
    verdict: Verdict = "pass"
    if outnumbers(only_noise, only_pgd):
        verdict = "fail"
    elif missed and not case.behaviour.random:
        verdict = "warn"
    elif not outnumbers(only_pgd, only_noise):
        verdict = "fail" if only_noise + only_pgd >= FEWEST else "not applicable"
    check = Check(
        11,
        "random noise",
        verdict,
        f"noise breaks {by_noise}, {pgd.name} {by_pgd} of {case.images} images",
        images=case.images,
        says={
            "pass": "Random points do less than gradients, and find nothing that those miss.",
            "warn": "Random points find what gradients miss.",
            "fail": "Random points do as much as gradients: the gradients tell the attack nothing.",
            "not applicable": "Noise and gradients break the same images, too few to compare them.",
        }[verdict],
        evidence={
            "noise": noise.accuracy.as_json(),
            pgd.name: pgd.accuracy.as_json(),
            "broken by noise only": only_noise,
            "broken by gradients only": only_pgd,
        },
    )
    return Outcome(check=check, results=(noise,))


def check_undefended(case: Case) -> Outcome:
    """Check 12: the classifier without its defence does not stand the same attacks.

    Passes where no more than 5 % of the images may stand all of them, warns above, and fails where most do: attacks
    that do not break an undefended classifier, or a ball that small, show nothing about the defence.
    """
    model = case.examined.undefended
    if model is None:
        return not_applicable(12, "undefended classifier", "no undefended classifier was given")
    attack = attack_white_box(replace(case.examined, model=model), case.size)
    robust = np.logical_and.reduce([result.robust for result in attack.results])
    left = int(robust.sum())
    verdict: Verdict = "warn" if exceeds(left, case.images, UNDEFENDED) else "pass"
    if exceeds(left, case.images, 0.5):
        verdict = "fail"
    check = Check(
        12,
        "undefended classifier",
        verdict,
        f"{left} of {case.images} images remain robust",
        images=case.images,
        says={
            "pass": "The attacks break the classifier without its defence.",
            "warn": "The undefended classifier is robust on some images: read the defence's accuracy against that.",
            "fail": "The undefended classifier is robust on most images: these attacks show nothing about the defence.",
        }[verdict],
        evidence={
            **{result.name: result.accuracy.as_json() for result in attack.results},
            "worst case": Accuracy.from_mask(robust).as_json(),
        },
    )
    return Outcome(check=check)


def _by_steps(case: Case) -> Sequence[tuple[int, AttackResult]]:
    attack, size = case.white_box, case.size
    return [
        (1, attack.fgsm),
        (size.short_steps, attack.short),
        (size.steps, attack.long),
        (2 * size.steps, attack.doubled),
    ]


def _random_points(case: Case, part: slice) -> Attack:
    """The first of many random points that the model misclassifies."""
    rows, seed = case.examined.rows[part], case.size.seed

    def attack(
        model: nn.Module,
        images: Float[Tensor, "image channel height width"],
        labels: Int64[Tensor, " image"],
        threat: ThreatModel,
    ) -> Float[Tensor, "image channel height width"]:
        found, wrong = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
        for draw in range(case.size.draws):
            left = (~wrong).nonzero()[:, 0]
            if not len(left):
                break
            chosen = rows[left.numpy(force=True)]
            if draw % 2:
                points = draw_starts(images[left], threat, rows=chosen, restart=draw, seed=seed)
            else:
                points = _on_border(images[left], threat, rows=chosen, draw=draw, seed=seed)
            with torch.no_grad():
                fooled = misclassified(model(points), labels[left])
            found[left[fooled]], wrong[left[fooled]] = points[fooled], True
        return found

    return attack


def _on_border(
    images: Float[Tensor, "image channel height width"],
    threat: ThreatModel,
    *,
    rows: Int64[np.ndarray, " image"],
    draw: int,
    seed: int,
) -> Float[Tensor, "image channel height width"]:
    """A random corner of an L-inf ball, or a point of an L2 sphere, clamped to [0, 1]."""
    return norms.project(norms.draw_on_border(images, threat, rows, "noise", seed, draw), images, threat)
