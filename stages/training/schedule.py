"""The schedule: which examples, weights version, parents and seeds every round uses, as a function of the recipe.

Actors, driver and resume only execute it; nothing here depends on time, arrival order or "latest".

>>> schedule = Schedule(ScheduleConfig(rounds=4, examples=64, unit_examples=32), images=200, length=10, seed=0)
>>> schedule.version(2), schedule.updates_per_round, schedule.round(0).positions.shape
(1, 2, (64,))
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64

from stages import randomness


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How fresh and how much: rounds, examples, replay and warm start."""

    rounds: int = 60
    """Rounds of the loop; each attacks one weights version and trains to the next."""
    examples: int = 256
    """Training images attacked in a round."""
    unit_examples: int = 256
    """Segments in a shard; it divides the examples of a round."""
    passes: int = 2
    """How often a round trains on each segment that was generated for it."""
    batch: int = 128
    """Segments in an update, fresh and replayed together."""
    replay: float = 0.25
    """Share of each batch that is drawn from earlier rounds."""
    replay_rounds: int = 20
    """How many rounds back the replay reaches."""
    warm_start: bool = True
    """Start where the example's previous segment ended, instead of from noise."""
    segment_steps: int = 3
    """k, attack steps made a visit under warm start; without it every segment has all T."""
    restart: float = 0.15
    """Chance that a warm-started example starts from noise again."""
    overlap_rounds: Literal[0, 1] = 1
    """1 attacks the weights of the round before, so that generating and training run side by side."""
    max_lag_updates: int = 32
    """Most updates that may lie between the attacked weights and the first use of a shard."""
    last_states: float = 0.0
    """Share of training states that are the last of their segment."""
    clean_states: float = 0.0
    """Share of training states that are the clean image; the rest is drawn evenly from t = 1 .. k (with both
    shares 0, that is the t ~ U{1..T} of Alg. 3)."""

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"schedule.rounds is {self.rounds}; it must be at least 0 (train on cached shards only)")
        for name in ("examples", "unit_examples", "passes", "batch", "segment_steps", "max_lag_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"schedule.{name} is {getattr(self, name)}; it must be at least 1")
        if self.examples % self.unit_examples:
            raise ValueError(
                f"schedule.unit_examples {self.unit_examples} does not divide schedule.examples {self.examples}; "
                "choose a divisor, so that every shard has the same size"
            )
        for name in ("replay", "restart", "last_states", "clean_states"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"schedule.{name} is {getattr(self, name):g}; it is a share in [0, 1]")
        if self.last_states + self.clean_states > 1:
            raise ValueError("schedule.last_states and schedule.clean_states add up to more than 1")
        if self.replay and self.replay_rounds < 1:
            raise ValueError("schedule.replay_rounds is 0 but schedule.replay is not: set one of them")
        if self.overlap_rounds not in (0, 1):
            raise ValueError(f"schedule.overlap_rounds is {self.overlap_rounds}; allowed are 0 and 1")
        if round(self.batch * (1 - self.replay)) < 1:
            raise ValueError(f"schedule.replay {self.replay:g} leaves no fresh segment in a batch of {self.batch}")


@dataclass(frozen=True, eq=False)
class RoundPlan:
    """What a round attacks: one entry an example, in slots 0 .. examples - 1.

    ``positions`` are places in the training split. ``made`` counts the steps of the start, ``origin`` is the round
    of the last fresh start, and ``parent_round``, ``parent_slot`` say where the previous segment lies (-1: none).
    """

    number: int
    positions: Int64[np.ndarray, " example"]
    made: Int64[np.ndarray, " example"]
    origin: Int64[np.ndarray, " example"]
    parent_round: Int64[np.ndarray, " example"]
    parent_slot: Int64[np.ndarray, " example"]


@dataclass(frozen=True, eq=False)
class Batch:
    """An update's segments: round and slot, the state (1 .. k; 0 stands for the clean image), and what is fresh."""

    rounds: Int64[np.ndarray, " segment"]
    slots: Int64[np.ndarray, " segment"]
    states: Int64[np.ndarray, " segment"]
    fresh: Bool[np.ndarray, " segment"]

    def part(self, rank: int, world: int) -> "Batch":
        """The slice of one of several train workers, with its share of what is fresh."""
        return Batch(**{name: column[rank::world] for name, column in vars(self).items()})


class Schedule:
    """The schedule of a recipe for a training split of ``images`` images and attacks of T = ``length`` steps.

    Raises ValueError when the recipe cannot hold its own bounds (lag, size of the training split, k > T).
    """

    def __init__(self, config: ScheduleConfig, *, images: int, length: int, seed: int) -> None:
        self.config, self.seed = config, seed
        self.images, self.length = images, length
        if config.examples > images:
            raise ValueError(
                f"schedule.examples is {config.examples}, but the training split has {images} images; "
                "choose at most that many"
            )
        if config.warm_start and config.segment_steps > length:
            raise ValueError(f"schedule.segment_steps is {config.segment_steps}, more than attack.steps (T = {length})")
        if self.lag_bound > config.max_lag_updates:
            raise ValueError(
                f"a shard would be first used up to {self.lag_bound} updates after the weights that it attacked, "
                f"more than schedule.max_lag_updates = {config.max_lag_updates}; lower schedule.examples or "
                "schedule.overlap_rounds, raise schedule.batch, or allow the lag"
            )
        self._rounds: list[RoundPlan] = []
        self._last = np.full((images, 4), -1, np.int64)  # per image: round, slot, steps made, origin

    @property
    def steps(self) -> int:
        """k, the attack steps of every segment."""
        return self.config.segment_steps if self.config.warm_start else self.length

    @property
    def fresh_per_batch(self) -> int:
        return round(self.config.batch * (1 - self.config.replay))

    @cached_property
    def updates_per_round(self) -> int:
        """Updates a round: enough batches for every fresh segment to be used ``passes`` times."""
        return max(1, -(-self.config.examples * self.config.passes // self.fresh_per_batch))

    @property
    def lag_bound(self) -> int:
        """Most updates between a published version and the first use of a segment that attacked it."""
        first_pass = -(-self.config.examples // self.fresh_per_batch)
        return self.config.overlap_rounds * self.updates_per_round + min(first_pass, self.updates_per_round)

    @property
    def units_per_round(self) -> int:
        return self.config.examples // self.config.unit_examples

    @property
    def updates(self) -> int:
        """Updates of the whole loop."""
        return self.config.rounds * self.updates_per_round

    @property
    def attack_steps(self) -> int:
        """Attack steps (one gradient of one image) of the whole loop."""
        return self.config.rounds * self.config.examples * self.steps

    def version(self, number: int) -> int:
        """The weights version that a round attacks: its own, or the one before with overlap."""
        return max(0, number - self.config.overlap_rounds)

    def window(self, number: int) -> range:
        """The rounds whose segments a round may train on, itself last."""
        reach = self.config.replay_rounds if self.config.replay else 0
        return range(max(0, number - reach), number + 1)

    def round(self, number: int) -> RoundPlan:
        """The plan of a round. Plans follow from each other, so earlier ones are made first and kept."""
        while len(self._rounds) <= number:
            self._rounds.append(self._plan(len(self._rounds)))
        return self._rounds[number]

    def _plan(self, number: int) -> RoundPlan:
        config = self.config
        rounds_an_epoch = self.images // config.examples  # what is left over sits out; each epoch another remainder
        epoch, place = divmod(number, rounds_an_epoch)
        order = randomness.permutation(self.images, self.seed, "examples", epoch)
        chosen = order[place * config.examples : (place + 1) * config.examples]
        last_round, last_slot, last_made, last_origin = self._last[chosen].T
        by_chance = randomness.uniform(config.examples, self.seed, "restart", number) < config.restart
        goes_on = (last_round >= 0) & (last_made + self.steps <= self.length) & ~by_chance & config.warm_start
        plan = RoundPlan(
            number=number,
            positions=chosen,
            made=np.where(goes_on, last_made, 0),
            origin=np.where(goes_on, last_origin, number),
            parent_round=np.where(goes_on, last_round, -1),
            parent_slot=np.where(goes_on, last_slot, -1),
        )
        slots = np.arange(config.examples)
        self._last[chosen] = np.stack([np.full_like(slots, number), slots, plan.made + self.steps, plan.origin], 1)
        return plan

    def batches(self, number: int) -> list[Batch]:
        """The batches of a round's updates: every fresh segment ``passes`` times, the rest replayed.

        Where that does not fill the last batch, the first segments of one more pass do.
        """
        count, fresh = self.updates_per_round, self.fresh_per_batch
        passes = -(-count * fresh // self.config.examples)
        order = np.concatenate(
            [randomness.permutation(self.config.examples, self.seed, "pass", number, turn) for turn in range(passes)]
        )
        return [self._batch(number, update, order[update * fresh : (update + 1) * fresh]) for update in range(count)]

    def _batch(self, number: int, update: int, fresh: Int64[np.ndarray, " fresh"]) -> Batch:
        config, key = self.config, (self.seed, number, update)
        window = self.window(number)
        replayed = config.batch - len(fresh)
        rounds = randomness.integers(window.start, number + 1, replayed, "replay round", *key)
        slots = randomness.integers(0, config.examples, replayed, "replay slot", *key)
        states = randomness.integers(1, self.steps + 1, config.batch, "state", *key)
        kind = randomness.uniform(config.batch, "state kind", *key)
        states = np.where(kind < config.last_states, self.steps, states)
        states = np.where(kind >= 1 - config.clean_states, 0, states)
        return Batch(
            rounds=np.concatenate([np.full(len(fresh), number), rounds]),
            slots=np.concatenate([fresh, slots]),
            states=states,
            fresh=np.arange(config.batch) < len(fresh),
        )

    def ages(self, number: int) -> Int64[np.ndarray, " use"]:
        """For each segment used in a round: updates between the weights that it attacked and this use."""
        ages = []
        for update, batch in enumerate(self.batches(number)):
            now = number * self.updates_per_round + update
            versions = np.maximum(0, batch.rounds - self.config.overlap_rounds)
            ages.append(now - versions * self.updates_per_round)
        return np.concatenate(ages)

    def lag(self, number: int) -> int:
        """Most updates between the weights that a round attacked and the first use of any of its segments."""
        first = np.full(self.config.examples, -1)
        for update, batch in reversed(list(enumerate(self.batches(number)))):
            first[batch.slots[batch.fresh]] = update
        used = int(first.max())
        return used + (number - self.version(number)) * self.updates_per_round
