"""Do attacks that do not need the model's own gradient find more? Checks 7, 8 and 9."""

import numpy as np
import torch
from pyautoattack.square import SquareAttack

from stages.evaluation.accuracy import device_of, evaluating
from stages.evaluation.attacks import Attack, AttackResult
from stages.evaluation.checks.attacking import ascend, attack_examined, fixed_seed, submit
from stages.evaluation.checks.case import Case, Outcome, not_applicable
from stages.evaluation.checks.counts import alone, exceeds, judge_zero, outnumbers
from stages.evaluation.checks.examined import CheckSize, Examined, on_device
from stages.evaluation.checks.surrogates import surrogates_of
from stages.evaluation.evidence import Check, Verdict
from stages.evaluation.lineup import square_runs
from stages.evaluation.pgd import PGDConfig

SEARCH = "search without gradients"


def run_square(examined: Examined, size: CheckSize) -> AttackResult | None:
    """Square (Andriushchenko et al. 2020), which uses no gradients, by AutoAttack's code; None where that fails."""
    channels, height, width = examined.images.shape[1:]
    if not square_runs(examined.threat.norm, (channels, height, width)):
        return None
    device = device_of(examined.model)

    def attack(part: slice) -> Attack:
        def run(model, images, labels, threat):  # noqa: ANN001, ANN202
            square = SquareAttack(
                model, norm=threat.norm, eps=threat.radius, n_queries=size.queries, seed=size.seed, device=str(device)
            )
            with torch.no_grad():
                return square.perturb(images, labels)

        return run

    with fixed_seed(size.seed, device):
        return attack_examined(examined, size, f"Square, {size.queries} queries", attack)


def check_square(case: Case) -> Outcome:
    """Check 7: a search without gradients breaks no image that gradients left.

    New breaks, by Square here or in AutoAttack, are a warning and count in the robust accuracy; on robust MNIST
    networks they are normal. The check fails where Square is the stronger attack beyond chance, the mark of masked
    gradients (Carlini et al. 2019, Sections 4.4 and 5.4). New breaks of a randomised model are compared with those of
    the same PGD run again.
    """
    square = case.square
    if square is None:
        height, width = case.examined.images.shape[2:]
        reason = f"Square's official code fails on images of {height} x {width} in {case.examined.threat.norm}"
        return not_applicable(7, SEARCH, reason)
    white_box = np.logical_and.reduce([result.robust for result in case.white_box.results])
    new, images = case.square_alone
    missed = alone(white_box, square.robust)
    verdict: Verdict = "warn" if new else "pass"
    if outnumbers(alone(square.robust, white_box), missed):
        verdict = "fail"
    elif case.behaviour.random and not _beyond_luck(case, new):
        verdict = "pass"
    check = Check(
        7,
        SEARCH,
        verdict,
        f"{new} of {images} images broken by Square alone",
        images=images,
        says={
            "pass": "A search without gradients finds nothing that gradients miss.",
            "warn": "A search without gradients finds what gradients miss; it counts in the robust accuracy.",
            "fail": "A search without gradients beats gradients: they are masked.",
        }[verdict],
        evidence={square.name: square.accuracy.as_json(), "new breaks": new, "broken by gradients only": missed},
    )
    return Outcome(check=check, results=(square,))


def check_transfer(case: Case) -> Outcome:
    """Check 8: adversaries of the undefended classifier and of other seeds break no image that remains robust.

    None passes, up to the tolerated share warns, more fails; of a randomised model, more than PGD run again fails.
    """
    sources = {f"other classifier {i}": model for i, model in enumerate(case.examined.others, start=1)}
    if case.examined.undefended is not None:
        sources = {"undefended classifier": case.examined.undefended, **sources}
    if not sources:
        return not_applicable(8, "transfer", "no undefended classifier and none of another seed was given")
    config = PGDConfig(steps=case.size.steps, seed=case.size.seed)
    results = tuple(
        submit(case.examined, case.size, f"transfer from {name}", ascend(model, case.examined, case.size, config))
        for name, model in sources.items()
    )
    verdict, new, each = _judge_new(case, results)
    check = Check(
        8,
        "transfer",
        verdict,
        f"{new} of {case.images} images newly broken, from {len(results)} classifier{'s' * (len(results) > 1)}",
        images=case.images,
        says={
            "pass": "Other classifiers' adversaries break nothing new.",
            "warn": "Other classifiers' adversaries break images that its own gradient does not.",
            "fail": "Other classifiers' adversaries do what its own gradient cannot: it is masked.",
        }[verdict],
        evidence={"newly broken": each, **{result.name: result.accuracy.as_json() for result in results}},
    )
    return Outcome(check=check, results=results)


def check_surrogates(case: Case) -> Outcome:
    """Check 9: gradients of models with the same answers and another backward pass break no image that remains robust.

    The long PGD from the same starts, through straight-through clamps and rounding, leaky ReLUs and rescaled logits,
    each where the model has such a part. Judged as check 8.
    """
    config = PGDConfig(steps=case.size.steps, seed=case.size.seed)
    with evaluating(case.examined.model):
        found = surrogates_of(case.examined.model, on_device(case.examined.first(2))[0])
    results = tuple(
        case.run_pgd(config, name=f"PGD-{config.steps} through {name}", through=model) for name, model in found.items()
    )
    verdict, new, each = _judge_new(case, results)
    check = Check(
        9,
        "surrogate backward passes",
        verdict,
        f"{new} of {case.images} images newly broken, through {len(results)} surrogates",
        images=case.images,
        says={
            "pass": "No other backward pass finds what the model's own misses.",
            "warn": "Another backward pass breaks images that the model's own misses.",
            "fail": "Another backward pass does what the model's own cannot: its gradient is masked.",
        }[verdict],
        evidence={"newly broken": each, **{result.name: result.accuracy.as_json() for result in results}},
    )
    return Outcome(check=check, results=results)


def _judge_new(case: Case, results: tuple[AttackResult, ...]) -> tuple[Verdict, int, dict[str, int]]:
    """The verdict on attacks that should break nothing new, how many images they do, and each attack."""
    each = {result.name: int((case.remaining & ~result.robust).sum()) for result in results}
    robust = np.logical_and.reduce([result.robust for result in results])
    new = int((case.remaining & ~robust).sum())
    if not case.behaviour.random:
        return judge_zero(new, case.images), new, each
    return ("fail" if _beyond_luck(case, max(each.values())) else "pass"), new, each


def _beyond_luck(case: Case, new: int) -> bool:
    """Of a randomised model: whether an attack breaks more of what remains robust than the same PGD does once more."""
    again = int((case.remaining & ~case.again.robust).sum()) if case.again else 0
    return exceeds(new, case.images) and outnumbers(new, again)
