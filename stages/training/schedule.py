"""The schedule: which images, weights version, starts and seeds every round uses, as a function of the recipe.

The training images are partitioned once into cohorts. An epoch visits all of them in a new random order, and a round
takes the next few. Actors, driver and resume only execute this; nothing depends on time, arrival order or "latest".

>>> schedule = Schedule(ScheduleConfig(rounds=4, cohort_images=50, round_cohorts=2, batch=50), images=210, seed=0)
>>> [len(cohort) for cohort in schedule.cohorts], schedule.updates_per_round, schedule.version(2)
([53, 53, 52, 52], 2, 1)
>>> [[(visit.cohort, visit.number) for visit in schedule.visits(number)] for number in range(3)]
[[(3, 0), (2, 0)], [(0, 0), (1, 0)], [(1, 1), (2, 1)]]
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from stages import randomness
from stages.settings import check_settings


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How much is attacked and trained on in a round, and how long a trajectory goes on."""

    rounds: int = 500
    """Rounds of the loop; each attacks one weights version and trains to the next."""
    cohort_images: int = 128
    """Images of a cohort, attacked together and stored as one shard; all training images are divided evenly into
    cohorts of about this size."""
    round_cohorts: int = 1
    """Cohorts that a round visits."""
    batch: int = 128
    """Images in an update; those of a round are divided evenly into batches of about this size."""
    visit_steps: int = 1
    """k, attack steps made in a visit."""
    life: int = 40
    """Most visits of a trajectory before it starts from noise again; 1 starts every visit from noise."""
    restart: float = 0.03
    """Chance that a trajectory starts from noise again before that, at each visit."""
    overlap_rounds: Literal[0, 1] = 1
    """1 attacks the weights of the round before, so that generating and training run side by side."""
    max_lag_updates: int = 32
    """Most updates that may lie between the attacked weights and the first use of a shard."""
    last_states: float = 0.0
    """Share of training states that are the last of their visit."""
    clean_states: float = 0.0
    """Share of training states that are the clean image; the rest is drawn evenly from t = 1 .. k (with both
    shares 0, a life of 1 and k = T, that is the t ~ U{1..T} of Alg. 3)."""
    clean_rounds: int = 0
    """First rounds, in which the share of clean images falls evenly from all to clean_states: an adapter that does not
    classify yet may learn nothing from attacks on weights as young as its own (0: none). At most a quarter of all."""

    def __post_init__(self) -> None:
        check_settings(self, "schedule")
        if self.rounds < 0:
            raise ValueError(f"schedule.rounds is {self.rounds}; it must be at least 0 (train on cached shards only)")
        if self.clean_rounds < 0:
            raise ValueError(f"schedule.clean_rounds is {self.clean_rounds}; it must be at least 0 (none)")
        for name in ("cohort_images", "round_cohorts", "batch", "visit_steps", "life", "max_lag_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"schedule.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("restart", "last_states", "clean_states"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"schedule.{name} is {getattr(self, name):g}; it is a share in [0, 1]")
        if self.last_states + self.clean_states > 1:
            raise ValueError("schedule.last_states and schedule.clean_states add up to more than 1")


@dataclass(frozen=True)
class Visit:
    """One attack on one cohort; ``number`` counts the visits of that cohort."""

    cohort: int
    number: int


@dataclass(frozen=True, eq=False)
class Batch:
    """An update's images, by their place in the round, and the state of each (1 .. k; 0 stands for the clean image)."""

    places: Int64[np.ndarray, " image"]
    states: Int64[np.ndarray, " image"]

    def part(self, rank: int, world: int) -> "Batch":
        """The slice of one of several train workers; slices differ by one image at most, and count the same."""
        return Batch(places=self.places[rank::world], states=self.states[rank::world])


class Schedule:
    """The schedule of a recipe for a training split of ``images`` images.

    Raises ValueError when the recipe cannot hold its own bounds (lag, size of the training split).
    """

    def __init__(self, config: ScheduleConfig, *, images: int, seed: int) -> None:
        self.config, self.images, self.seed = config, images, seed
        count = max(1, round(images / config.cohort_images))
        if config.round_cohorts > count:
            raise ValueError(
                f"schedule.round_cohorts is {config.round_cohorts}, but {images} training images make {count} cohorts "
                f"of about {config.cohort_images}: choose at most that many, or a smaller schedule.cohort_images"
            )
        shuffled = randomness.permutation(images, seed, "cohorts")
        self.cohorts = tuple(np.sort(part) for part in np.array_split(shuffled, count))
        if self.lag_bound > config.max_lag_updates:
            raise ValueError(
                f"a shard would be first used up to {self.lag_bound} updates after the weights that it attacked, "
                f"more than schedule.max_lag_updates = {config.max_lag_updates}; lower schedule.cohort_images, "
                "schedule.round_cohorts or schedule.overlap_rounds, raise schedule.batch, or allow the lag"
            )
        self._orders: list[list[int]] = []
        self._ages: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def updates_per_round(self) -> int:
        least = self.config.round_cohorts * (self.images // len(self.cohorts))  # of a round's images, one an update
        return max(1, min(least, round(self.examples / self.config.batch)))

    @property
    def examples(self) -> int:
        """Images of a round, on average."""
        return round(self.images * self.config.round_cohorts / len(self.cohorts))

    @property
    def updates(self) -> int:
        """Updates of the whole loop."""
        return self.config.rounds * self.updates_per_round

    @property
    def attack_steps(self) -> int:
        """Attack steps (one gradient of one image) of the whole loop, to within a cohort's remainder."""
        return self.config.rounds * self.examples * self.config.visit_steps

    @property
    def lag_bound(self) -> int:
        """Most updates between a published version and the first use of a segment that attacked it."""
        return (self.config.overlap_rounds + 1) * self.updates_per_round - 1

    def version(self, number: int) -> int:
        """The weights version that a round attacks: its own, or the one before with overlap."""
        return max(0, number - self.config.overlap_rounds)

    def lag(self, number: int) -> int:
        """Most updates between the weights that a round attacked and the first use of any of its segments."""
        return (number - self.version(number) + 1) * self.updates_per_round - 1

    def visits(self, number: int) -> tuple[Visit, ...]:
        """The visits of a round, each of another cohort."""
        size = self.config.round_cohorts
        places = (divmod(place, len(self.cohorts)) for place in range(number * size, (number + 1) * size))
        return tuple(Visit(cohort=self._order(epoch)[place], number=epoch) for epoch, place in places)

    def ages(self, visit: Visit) -> Int64[np.ndarray, " image"]:
        """For each image of the cohort, how many visits its trajectory has had; 0: it starts from noise now."""
        known, ages = self._ages.get(visit.cohort, (-1, None))
        if ages is None or known > visit.number:
            known, ages = 0, np.zeros(len(self.cohorts[visit.cohort]), np.int64)
        for number in range(known + 1, visit.number + 1):
            drawn = randomness.uniform(len(ages), self.seed, "restart", visit.cohort, number)
            again = (drawn < self.config.restart) | (ages + 1 >= self.config.life)
            ages = np.where(again, 0, ages + 1)
        self._ages[visit.cohort] = visit.number, ages
        return ages

    def batches(self, number: int) -> list[Batch]:
        """The batches of a round's updates: every image once, drawn across the round's cohorts."""
        count = sum(len(self.cohorts[visit.cohort]) for visit in self.visits(number))
        order = randomness.permutation(count, self.seed, "batches", number)
        parts = np.array_split(order, self.updates_per_round)
        return [Batch(places=part, states=self._states(len(part), number, update)) for update, part in enumerate(parts)]

    def _states(self, count: int, number: int, update: int) -> Int64[np.ndarray, " image"]:
        config, key = self.config, (self.seed, number, update)
        states = randomness.integers(1, config.visit_steps + 1, count, "state", *key)
        kind = randomness.uniform(count, "state kind", *key)
        states = np.where(kind < config.last_states, config.visit_steps, states)
        gentle_rounds = min(config.clean_rounds, config.rounds / 4)
        gentle = 1 - number / gentle_rounds if number < gentle_rounds else 0.0
        return np.where(kind >= 1 - max(config.clean_states, gentle), 0, states)

    def _order(self, epoch: int) -> list[int]:
        """The order of the cohorts in an epoch. Orders follow from each other, so earlier ones are made first."""
        while len(self._orders) <= epoch:
            self._orders.append(self._next_order(len(self._orders)))
        return self._orders[epoch]

    def _next_order(self, epoch: int) -> list[int]:
        """A random order in which a round that began in the last epoch meets none of its cohorts again."""
        count, size = len(self.cohorts), self.config.round_cohorts
        order = randomness.permutation(count, self.seed, "order", epoch).tolist()
        begun = epoch * count % size
        if not begun:
            return order
        met = set(self._orders[epoch - 1][-begun:])
        first = [cohort for cohort in order if cohort not in met][: size - begun]
        return first + [cohort for cohort in order if cohort not in first]
