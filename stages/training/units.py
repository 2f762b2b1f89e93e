"""From the schedule to units: a round's plan becomes named work as soon as the weights it attacks are known."""

import numpy as np

from stages.data.augmentation import draw_augmentation
from stages.data.splits import Split
from stages.randomness import key_seed
from stages.rap.attack import AttackProcess
from stages.training.schedule import RoundPlan, Schedule
from stages.trajectories.generate import Unit


class Units:
    """The units of every round: a function of the schedule, the images and the fingerprints of the versions.

    ``model`` is the fingerprint of what the weights versions leave open (shape of the adapter, the classifier).
    """

    def __init__(
        self, schedule: Schedule, process: AttackProcess, split: Split, *, model: str, augment: bool = False
    ) -> None:
        self.schedule, self.process, self.split = schedule, process, split
        self.model, self.augment = model, augment
        self._made: dict[tuple[int, str], list[Unit]] = {}

    def of(self, number: int, weights: list[str]) -> list[Unit]:
        """The units of a round. ``weights`` are the fingerprints of v_0 .. v_version(number), at least."""
        for earlier in range(number):  # a unit names its parents: from the first on, so that no chain of them recurses
            self._of(earlier, weights)
        return self._of(number, weights)

    def _of(self, number: int, weights: list[str]) -> list[Unit]:
        attacked = weights[self.schedule.version(number)]
        if (number, attacked) not in self._made:
            plan, size = self.schedule.round(number), self.schedule.config.unit_examples
            self._made[number, attacked] = [
                self._unit(plan, unit, slice(unit * size, (unit + 1) * size), weights)
                for unit in range(self.schedule.units_per_round)
            ]
        return self._made[number, attacked]

    def _unit(self, plan: RoundPlan, number: int, slots: slice, weights: list[str]) -> Unit:
        size, version = self.schedule.config.unit_examples, self.schedule.version(plan.number)
        before, slot = plan.parent_round[slots], plan.parent_slot[slots]
        places = np.stack([before, slot // size], 1)
        named, parent = np.unique(places[before >= 0], axis=0, return_inverse=True)
        parents = tuple(self._of(int(round_), weights)[int(unit)].fingerprint for round_, unit in named)
        which = np.full(len(before), -1, np.int64)
        which[before >= 0] = parent.reshape(-1)
        index = self.split.rows[plan.positions[slots]]
        return Unit(
            round=plan.number,
            number=number,
            version=version,
            weights=weights[version],
            model=self.model,
            data=self.split.fingerprint,
            process=self.process,
            steps=self.schedule.steps,
            start_seed=key_seed(self.schedule.seed, "start", plan.number),
            index=index,
            made=plan.made[slots],
            augmentation=self._augmentation(index, plan.origin[slots]) if self.augment else None,
            parents=parents,
            parent=which,
            parent_position=np.where(before >= 0, slot % size, -1),
        )

    def _augmentation(self, index: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """Crop and flip of each example, drawn in the round of its last fresh start and kept until the next."""
        drawn = np.zeros((len(index), 3), np.int16)
        for round_ in np.unique(origin):
            mine = origin == round_
            drawn[mine] = draw_augmentation(index[mine], self.schedule.seed, int(round_))
        return drawn
