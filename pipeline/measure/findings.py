"""What was measured: models under attacks, and the checks on the first of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.measure.checks import Checked, robust_accuracy
from pipeline.measure.outcome import Evaluation, of_kind, worst_of
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.screening import Screening
from stages.rap.threat import ThreatModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """Evaluations by name of the model and of the measurement, and what follows from them."""

    data: str
    test: str
    """Fingerprint of the test set, without which two evaluations cannot be paired."""
    evaluations: Mapping[str, Mapping[str, Evaluation]]
    fingerprints: Mapping[str, str]
    """Of the models."""
    seconds: float
    """What this call took."""
    screening: Screening | None = None
    checked: Checked | None = None
    """The checks on the first model, in the ball of its first evaluation."""

    @property
    def first(self) -> Mapping[str, Evaluation]:
        """The evaluations of the first model; none where nothing was attacked."""
        return next(iter(self.evaluations.values()), {})

    @property
    def balls(self) -> list[ThreatModel]:
        """The balls in which models were attacked, in order."""
        return list(dict.fromkeys(each.threat for found in self.evaluations.values() for each in found.values()))

    def worst_cases(self, model: str | None = None) -> dict[ThreatModel, Evaluation]:
        """For each ball, the worst case of every attack that was run on the images, image by image.

        ``model`` is the first where there are several.
        """
        found = list((self.first if model is None else self.evaluations[model]).values())
        balls = dict.fromkeys(each.threat for each in found)
        return {ball: worst_of([each for each in found if each.threat == ball]) for ball in balls}

    @property
    def robust_accuracy(self) -> Accuracy:
        """Of the first model in the first ball: in the worst case over every attack, those of the checks included."""
        ball, worst = next(iter(self.worst_cases().items()))
        if self.checked is None:
            return worst.robust
        return robust_accuracy([each for each in self.first.values() if each.threat == ball], self.checked)

    def clean(self, model: str | None = None) -> Accuracy:
        """Accuracy without an attack on all images that some attack was run on; of the first model unless it is
        named."""
        found = self.first if model is None else self.evaluations[model]
        return max((each.clean for each in found.values()), key=lambda accuracy: accuracy.images)

    @property
    def autoattack(self) -> Evaluation | None:
        """AutoAttack's evaluation of the first model, of whatever version; a screening is none."""
        return None if self.screening else of_kind(self.first, "autoattack")

    @property
    def seconds_of_work(self) -> dict[str, float]:
        """What evaluation and checks took, by whichever call, added up over workers."""
        evaluations = [each for found in self.evaluations.values() for each in found.values()]
        checks = {"checks": self.checked.seconds} if self.checked else {}
        return {"evaluation": sum(each.seconds for each in evaluations), **checks}
