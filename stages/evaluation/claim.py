"""The claim that RobustBench takes for its leaderboard: the fields of its model_info files, all accuracies as text.

>>> radius_text(8 / 255), radius_text(0.5)
('8/255', '0.5')
"""

import math
from dataclasses import dataclass

from stages.evaluation.accuracy import Accuracy
from stages.rap.threat import Norm, ThreatModel

LEADERBOARDS: dict[tuple[str, Norm, float], str] = {
    ("CIFAR-10", "Linf", 8 / 255): "cifar10",
    ("CIFAR-10", "L2", 0.5): "cifar10",
}
"""RobustBench's name of the data set by data set and ball, of those that this project reads."""


def leaderboard(data: str, threat: ThreatModel) -> str | None:
    """RobustBench's name of a data set whose leaderboard a ball belongs to; None where it has none.

    >>> leaderboard("CIFAR-10", ThreatModel(radius=8 / 255)), leaderboard("CIFAR-10", ThreatModel(radius=0.1))
    ('cifar10', None)
    """
    known = LEADERBOARDS.items()
    return next(
        (name for (of, norm, radius), name in known if (of, norm) == (data, threat.norm) and _same(radius, threat)),
        None,
    )


def _same(radius: float, threat: ThreatModel) -> bool:
    return math.isclose(radius, threat.radius, rel_tol=1e-5)  # 8/255 as people round it: 0.0313725


@dataclass(frozen=True, kw_only=True)
class ClaimConfig:
    """Who claims what; the figures are filled in by the evaluation."""

    link: str = ""
    """Address of the paper or of the code."""
    name: str = ""
    """Title of the work; unset: the model's name."""
    authors: str = ""
    """Authors, separated by commas."""
    additional_data: bool = False
    """Whether other images than the data set's were trained on."""
    venue: str = "Unpublished"
    """Where it appeared."""
    architecture: str = ""
    """Architecture of the model; unset: its type."""
    forward_passes: int = 1
    """Forward passes that an answer takes."""

    def __post_init__(self) -> None:
        if self.forward_passes < 1:
            raise ValueError(f"claim.forward_passes is {self.forward_passes}; it must be at least 1")


def robustbench_claim(
    config: ClaimConfig,
    *,
    dataset: str,
    threat: ThreatModel,
    clean: Accuracy,
    autoattack: Accuracy,
    worst_case: Accuracy,
    flags: tuple[str, ...],
) -> dict[str, object]:
    """The claim as RobustBench's JSON has it, of AutoAttack standard on a data set and ball of a `leaderboard`.

    ``reported`` is the per-image worst case over every attack that was run; ``unreliable`` says that AutoAttack
    itself warned, or that images were fewer than the 10,000 of the benchmark.
    """
    few = autoattack.images < 10_000
    low, high = worst_case.interval
    footnote = f"AutoAttack standard on {autoattack.images} images; worst case over all attacks {worst_case}."
    if few:
        footnote += (
            f" The 95 % interval is [{100 * low:.2f}, {100 * high:.2f}]: fewer than the benchmark's 10,000 images."
        )
    return {
        "link": config.link,
        "name": config.name,
        "authors": config.authors,
        "additional_data": config.additional_data,
        "number_forward_passes": config.forward_passes,
        "dataset": dataset,
        "venue": config.venue,
        "architecture": config.architecture,
        "eps": radius_text(threat.radius),
        "clean_acc": _percent(clean),
        "reported": _percent(worst_case),
        "autoattack_acc": _percent(autoattack),
        "footnote": " ".join((footnote, *flags)),
        "unreliable": bool(flags) or few,
    }


def radius_text(radius: float) -> str:
    """A radius as people write it: as a short decimal, or in 255ths where it is a whole number of them."""
    whole = round(radius * 255)
    is_short = abs(radius - round(radius, 3)) < 1e-12
    return f"{radius:g}" if is_short or abs(radius * 255 - whole) > 1e-9 else f"{whole}/255"


def _percent(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.value:.2f}"
