"""Does the training explain the robustness? Checks 17 to 19, which judge what others measured.

The trainings themselves cost more than all other checks together, so whoever calls trains, at a tenth of the budget
unless asked for more, and says which share it was.
"""

from dataclasses import dataclass

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.evidence import Check, Verdict

ABLATIONS = "ablations"
VANILLA = "adapter trained on the vanilla classifier's adversaries"
SELECTION = "selection on unseen images"
NOTHING_TO_EXPLAIN = (
    "No image here remains robust after this much training, so there is no robustness to explain: raise checks.budget."
)


@dataclass(frozen=True, kw_only=True)
class Ablations:
    """Robust accuracy with one part of the training left out, all under one attack on the same images."""

    attack: str
    """The attack, such as "PGD-20"."""
    budget: float
    """Share of the real training's budget that each training had, in (0, 1]."""
    defence: Accuracy
    """The defence itself, trained with this budget."""
    undefended: Accuracy | None = None
    untrained_adapter: Accuracy | None = None
    denoising_only: Accuracy | None = None
    """The adapter trained on images with noise in place of adversaries."""
    adversarial_training: Accuracy | None = None
    """The same composite network, all its weights trained adversarially."""

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"the ablations' budget is {self.budget:g}; it is a share of the real one: in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class VanillaTraining:
    """Robust accuracy of an adapter that only met adversaries of the classifier without it."""

    attack: str
    """The attack, on the classifier behind the adapter, such as "PGD-20"."""
    budget: float
    """Share of the real training's budget that both trainings had, in (0, 1]."""
    defence: Accuracy
    """The defence itself, trained with this budget."""
    vanilla: Accuracy

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"the training's budget is {self.budget:g}; it is a share of the real one: in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class SelectionFacts:
    """What is known of the images by which the search and the shipped version were chosen."""

    selection: str
    """Fingerprint of the images on which decisions were made."""
    trained: tuple[str, ...]
    """Fingerprints of all images on which any weight was trained, the classifier's included."""
    test: str
    """Fingerprint of the images that are reported."""
    shared_images: int
    """Selection images that are also among the trained or the tested ones."""
    images: int
    """Selection images."""
    external_weights: bool = False
    """Some weights came from elsewhere, and nobody here knows on which images they were trained."""


def check_ablations(ablations: Ablations | None) -> Check:
    """Check 17: the defence must beat the undefended classifier, an untrained adapter and mere denoising.

    Passes where the 95 % intervals are apart, warns where they overlap, and fails where one of the three is as good.
    That is stricter than a test of the difference. Where no image remains robust under any of them, there is nothing
    to explain, and the check does not apply. Adversarial training of the composite is reported: it may be better.
    """
    if ablations is None:
        return _missing(17, ABLATIONS, "no ablation was trained")
    parts = {
        "undefended classifier": ablations.undefended,
        "untrained adapter": ablations.untrained_adapter,
        "denoising only": ablations.denoising_only,
    }
    measured = {name: accuracy for name, accuracy in parts.items() if accuracy is not None}
    composite = ablations.adversarial_training
    if not measured and composite is None:
        return _missing(17, ABLATIONS, "no ablation was trained")
    verdict = _explained(list(measured.values()), ablations.defence)
    reported = measured | ({"adversarial training": composite} if composite else {})
    better = composite is not None and composite.interval[0] > ablations.defence.interval[1]
    absent = [name for name, accuracy in (parts | {"adversarial training": composite}).items() if accuracy is None]
    says = {
        "pass": "The robustness comes from training the adapter on adversaries.",
        "warn": f"Of {_unclear(measured, ablations.defence)} the number of images cannot show that it is worse.",
        "fail": f"{_unclear(measured, ablations.defence)}: as good or not clearly worse, so that what is left out does "
        "not explain the robustness.",
        "not applicable": NOTHING_TO_EXPLAIN,
    }[verdict]
    return Check(
        17,
        ABLATIONS,
        verdict,
        f"{ablations.attack}, {_label(ablations.budget)}: defence {_percent(ablations.defence)}, "
        + ", ".join(f"{name} {_percent(accuracy)}" for name, accuracy in reported.items()),
        images=ablations.defence.images,
        says=says
        + (" Adversarial training of all weights does better with this budget." if better else "")
        + (f" Not trained: {', '.join(absent)}." if absent else ""),
        evidence={
            "attack": ablations.attack,
            "budget": ablations.budget,
            "defence": ablations.defence.as_json(),
            **{name: accuracy.as_json() for name, accuracy in reported.items()},
        },
    )


def check_vanilla_training(facts: VanillaTraining | None) -> Check:
    """Check 18: an adapter that never met adversaries of the whole must be far worse.

    Otherwise the defence only hides the classifier's gradient. It need not be near 0: on MNIST thresholding alone
    helps. Passes where the 95 % intervals are apart, warns where they overlap, and fails where it is as good; where
    neither is robust on any image there is no robustness to explain.
    """
    if facts is None:
        return _missing(18, VANILLA, "no such adapter was trained")
    verdict = _explained([facts.vanilla], facts.defence)
    says = {
        "pass": "Attacks on the whole robust classifier are what made it robust.",
        "warn": "The number of images cannot show that training against the whole is what helps.",
        "fail": "Training against the whole robust classifier gains nothing over training against the classifier.",
        "not applicable": NOTHING_TO_EXPLAIN,
    }[verdict]
    return Check(
        18,
        VANILLA,
        verdict,
        f"{facts.attack}, {_label(facts.budget)}: {_percent(facts.vanilla)}, defence {_percent(facts.defence)}",
        images=facts.defence.images,
        says=says,
        evidence={
            "attack": facts.attack,
            "budget": facts.budget,
            "defence": facts.defence.as_json(),
            "vanilla": facts.vanilla.as_json(),
        },
    )


def check_selection(facts: SelectionFacts | None) -> Check:
    """Check 19: decisions were made on images that trained no weight and are not those reported."""
    if facts is None:
        return _missing(19, SELECTION, "nothing is known of the images by which the model was chosen")
    overlaps = facts.shared_images > 0 or facts.selection in (*facts.trained, facts.test)
    verdict: Verdict = "fail" if overlaps else "warn" if facts.external_weights else "pass"
    says = {
        "pass": "No decision saw an image that trained a weight or is reported.",
        "warn": "Some weights came from elsewhere; they may have been trained on the images of the selection.",
        "fail": "Decisions were made on images that also trained weights or are reported: set a hold-out apart.",
    }[verdict]
    shared = facts.images if facts.selection in (*facts.trained, facts.test) else facts.shared_images
    return Check(
        19,
        SELECTION,
        verdict,
        f"{shared} of {facts.images} selection images were trained on or are reported"
        + (", weights from elsewhere" if facts.external_weights else ""),
        images=facts.images,
        says=says,
        evidence={
            "selection": facts.selection,
            "trained": list(facts.trained),
            "test": facts.test,
            "shared images": shared,
            "external weights": facts.external_weights,
        },
    )


def _missing(number: int, name: str, reason: str) -> Check:
    return Check(number, name, "not applicable", "not measured", images=0, says=f"Not judged: {reason}.")


def _explained(ablated: list[Accuracy], defence: Accuracy) -> Verdict:
    """Whether the defence is better than every training from which something was left out."""
    if not any(each.correct for each in (defence, *ablated)):
        return "not applicable"
    if any(each.value >= defence.value for each in ablated):
        return "fail"
    return "pass" if all(each.interval[1] < defence.interval[0] for each in ablated) else "warn"


def _unclear(ablated: dict[str, Accuracy], defence: Accuracy) -> str:
    return ", ".join(name for name, accuracy in ablated.items() if accuracy.interval[1] >= defence.interval[0])


def _label(budget: float) -> str:
    return "full budget" if budget == 1 else f"{100 * budget:g} % of the budget"


def _percent(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.value:.1f} %"
