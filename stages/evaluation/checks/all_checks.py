"""All 20 checks of an honest report, in one call."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from stages.evaluation.accuracy import Accuracy, device_of
from stages.evaluation.attacks import AttackResult
from stages.evaluation.checks.attacking import attack_white_box, fixed_seed, run_pgd
from stages.evaluation.checks.binarization import check_binarization
from stages.evaluation.checks.case import Case, Outcome
from stages.evaluation.checks.determinism import check_randomness, observe
from stages.evaluation.checks.examined import CheckSize, Examined, clean_of
from stages.evaluation.checks.explanations import check_ablations, check_selection, check_vanilla_training
from stages.evaluation.checks.gradients import check_flags, check_gradient
from stages.evaluation.checks.reporting import check_clean, check_elsewhere, check_purifier, check_robust_accuracy
from stages.evaluation.checks.strength import (
    check_iterations,
    check_noise,
    check_order,
    check_radius,
    check_unbounded,
    check_undefended,
)
from stages.evaluation.checks.transfer import check_square, check_surrogates, check_transfer, run_square
from stages.evaluation.evidence import Check, Curve
from stages.evaluation.pgd import PGDConfig

CHECKS: dict[str, Callable[[Case], Outcome]] = {
    "clean accuracy": check_clean,
    "gradient": check_gradient,
    "stronger attacks": check_order,
    "iterations": check_iterations,
    "radius": check_radius,
    "unbounded": check_unbounded,
    "Square": check_square,
    "transfer": check_transfer,
    "surrogates": check_surrogates,
    "flags": check_flags,
    "noise": check_noise,
    "undefended": check_undefended,
    "binarization": check_binarization,
    "randomness": check_randomness,
    "elsewhere": check_elsewhere,
    "purifier": check_purifier,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Examination:
    """What the checks found."""

    checks: tuple[Check, ...]
    """All 20, by number."""
    curves: tuple[Curve, ...]
    results: tuple[AttackResult, ...]
    """The attacks of the checks on the model in its own ball, on the first `CheckSize.images` images."""
    robust: Bool[np.ndarray, " image"]
    """True where an image, of all those given, remains robust to everything that was run."""

    @property
    def robust_accuracy(self) -> Accuracy:
        return Accuracy.from_mask(self.robust)

    def check(self, number: int) -> Check:
        """The check of a number from 1 to 20."""
        return self.checks[number - 1]


def run_checks(
    examined: Examined, size: CheckSize | None = None, *, progress: Callable[[str], None] = lambda name: None
) -> Examination:
    """Run every check that what is known of the model allows; the same verdicts for the same seed and device.

    ``progress`` is called with the name of each check before it runs. Leaves the model and PyTorch's random numbers as
    they were. Raises NonFiniteLogits where the model returns NaN or infinity.
    """
    size = size or CheckSize()
    with fixed_seed(size.seed, device_of(examined.model)):
        progress("white-box attacks")
        case = make_case(examined, size)
        outcomes = []
        for name, check in CHECKS.items():
            progress(name)
            outcomes.append(check(case))
        results = tuple(result for outcome in outcomes for result in outcome.results)
        clean = clean_of(examined, size)
    robust_accuracy, robust = check_robust_accuracy(examined, clean, results, covered=case.images)
    told = [
        check_ablations(examined.ablations),
        check_vanilla_training(examined.vanilla),
        check_selection(examined.selection),
    ]
    found = [*(outcome.check for outcome in outcomes), robust_accuracy, *told]
    return Examination(
        checks=tuple(sorted(found, key=lambda check: check.number)),
        curves=tuple(_joined(curve for outcome in outcomes for curve in outcome.curves)),
        results=results,
        robust=robust,
    )


def _joined(curves: Iterable[Curve]) -> Iterator[Curve]:
    """Curves of one attack along one axis as one curve."""
    found: dict[tuple[str, str], dict[float, Accuracy]] = {}
    for curve in curves:
        found.setdefault((curve.name, curve.x), {}).update(curve.points)
    for (name, x), points in found.items():
        yield Curve(name=name, x=x, points=tuple(sorted(points.items())))


def make_case(examined: Examined, size: CheckSize) -> Case:
    """What every check leans on: the model's behaviour, and the plain attacks whose soundness is in question."""
    chosen = examined.first(size.images)
    behaviour = observe(chosen, size)
    again = PGDConfig(steps=size.steps, seed=size.seed + 1)
    return Case(
        examined=chosen,
        size=size,
        behaviour=behaviour,
        clean=clean_of(chosen, size),
        white_box=attack_white_box(chosen, size, to_the_end=behaviour.random),
        square=run_square(chosen, size),
        broken_by=examined.broken_by,
        again=run_pgd(chosen, size, again, to_the_end=True) if behaviour.random else None,
    )
