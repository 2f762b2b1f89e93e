"""From the schedule to units: a round's visits become named work as soon as the weights they attack are known."""

from collections.abc import Mapping

from stages.data.augmentation import draw_augmentation
from stages.data.splits import Split
from stages.randomness import key_seed
from stages.rap.process import AttackProcess
from stages.training.schedule import Schedule, Visit
from stages.trajectories.generate import Unit

Previous = Mapping[int, str]
"""By cohort, the fingerprint of the shard of its last visit."""


class Units:
    """The units of every round.

    ``model`` is the fingerprint of what the weights versions leave open (shape of the adapter, the classifier).
    """

    def __init__(
        self, schedule: Schedule, process: AttackProcess, split: Split, *, model: str, augment: bool = False
    ) -> None:
        self.schedule, self.process, self.split = schedule, process, split
        self.model, self.augment = model, augment

    def of(self, number: int, attacked: str, previous: Previous) -> list[Unit]:
        """The units of a round that attacks the weights of a fingerprint, after the shards of the rounds before."""
        visits = self.schedule.visits(number)
        return [self._unit(number, place, visit, attacked, previous) for place, visit in enumerate(visits)]

    def _unit(self, number: int, place: int, visit: Visit, attacked: str, previous: Previous) -> Unit:
        schedule, ages = self.schedule, self.schedule.ages(visit)
        index = self.split.rows[schedule.cohorts[visit.cohort]]
        augmentation = draw_augmentation(index, schedule.seed, "visit", visit.number) if self.augment else None
        return Unit(
            round=number,
            number=place,
            cohort=visit.cohort,
            visit=visit.number,
            version=schedule.version(number),
            weights=attacked,
            model=self.model,
            data=self.split.fingerprint,
            process=self.process,
            steps=schedule.config.visit_steps,
            start_seed=key_seed(schedule.seed, "start", visit.number),
            index=index,
            taken=ages * schedule.config.visit_steps,
            augmentation=augmentation,
            parent=previous[visit.cohort] if ages.any() else "",
        )


def after(previous: Previous, units: list[Unit]) -> dict[int, str]:
    """The last shards of all cohorts once some units are committed."""
    return {**previous, **{unit.cohort: unit.fingerprint for unit in units}}
