"""What happened to images under attacks: of one model under one attack, and in the worst case over several."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.artifacts import Artifact
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.attacks import refusal_flag
from stages.evaluation.autoattack import square_flag
from stages.rap.threat import ThreatModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The merged receipts of a model under one attack: what happened to each image, and what was noticed.

    ``verdicts`` holds, for each of ``rows`` of the data set, the attack that broke the image, "clean" where the image
    itself is misclassified, and None where it remains robust.
    """

    attack: Mapping[str, Any]
    """What was run: kind, name, and its settings, as its receipts have it."""
    threat: ThreatModel
    rows: np.ndarray
    verdicts: tuple[str | None, ...]
    flags: tuple[str, ...]
    unverified: int
    """Images that came back as adversaries and were none, which count as not broken by that attack; its flags say
    which."""
    attacked_now: int
    seconds: float
    receipts: tuple[str, ...]
    """Where the receipts are, with every adversarial image in verdict.npz."""

    @property
    def name(self) -> str:
        """The attack, as a table names it."""
        return self.attack["name"]

    @property
    def is_standard(self) -> bool:
        """Whether it is the standard version of AutoAttack on its own parameters, to which others' figures refer."""
        return bool(self.attack.get("standard"))

    @property
    def clean_mask(self) -> np.ndarray:
        """True where the image itself is classified correctly."""
        return np.array([by != "clean" for by in self.verdicts])

    @property
    def robust_mask(self) -> np.ndarray:
        """True where the image is classified correctly and was not broken."""
        return np.array([by is None for by in self.verdicts])

    @property
    def clean(self) -> Accuracy:
        return Accuracy.from_mask(self.clean_mask)

    @property
    def robust(self) -> Accuracy:
        return Accuracy.from_mask(self.robust_mask)

    @property
    def broken_by(self) -> dict[str, int]:
        """How many images each attack broke, by its name."""
        return {by: self.verdicts.count(by) for by in sorted({by for by in self.verdicts if by})}


def merge(receipts: Sequence[Artifact], threat: ThreatModel, *, attacked_now: int) -> Evaluation:
    """The receipts of a model under one attack as one."""
    metrics = [receipt.metrics for receipt in receipts]
    verdicts = [by for each in metrics for by in each["broken_by"]]
    refused = sum((Counter(each["refused"]) for each in metrics), Counter())
    flags = {flag for each in metrics for flag in each["flags"]}
    flags |= {refusal_flag(attack, count) for attack, count in refused.items()}
    overall = square_flag(verdicts)
    return Evaluation(
        attack=metrics[0]["attack"],
        threat=threat,
        rows=np.array([row for each in metrics for row in each["rows"]]),
        verdicts=tuple(verdicts),
        flags=tuple(sorted(flags | ({overall} if overall else set()))),
        unverified=refused.total(),
        attacked_now=attacked_now,
        seconds=sum(receipt.manifest["provenance"]["seconds"] for receipt in receipts),
        receipts=tuple(str(receipt.path) for receipt in receipts),
    )


def of_kind(evaluations: Mapping[str, Evaluation], kind: str) -> Evaluation | None:
    """The first evaluation by a kind of attack, such as "autoattack"."""
    return next((each for each in evaluations.values() if each.attack["kind"] == kind), None)


def worst_of(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Per image the worst of every attack within one ball, on the images that all of them were run on.

    Raises ValueError where there is nothing to combine, or the balls differ.
    """
    if not evaluations:
        raise ValueError("no attack was run: there is no worst case")
    if len({evaluation.threat for evaluation in evaluations}) > 1:
        raise ValueError("attacks within different balls have no common worst case: combine those of one threat model")
    known = [dict(zip(each.rows.tolist(), each.verdicts, strict=True)) for each in evaluations]
    rows = sorted(set.intersection(*(set(verdicts) for verdicts in known)))
    if not rows:
        raise ValueError("the attacks were run on different images: there is no worst case")
    first = evaluations[0]
    return replace(
        first,
        attack={"kind": "all", "name": ", ".join(each.name for each in evaluations)},
        rows=np.array(rows),
        verdicts=tuple(_worst([verdicts[row] for verdicts in known]) for row in rows),
        flags=tuple(dict.fromkeys(flag for each in evaluations for flag in each.flags)),
        unverified=sum(each.unverified for each in evaluations),
        attacked_now=sum(each.attacked_now for each in evaluations),
        seconds=sum(each.seconds for each in evaluations),
        receipts=tuple(path for each in evaluations for path in each.receipts),
    )


def _worst(found: list[str | None]) -> str | None:
    """What is said of an image that attacks disagree on: that it was wrong from the start, else who broke it first."""
    return "clean" if "clean" in found else next((by for by in found if by), None)
