"""Training on another run's committed shards: reuse of what was attacked elsewhere, with its limits said aloud.

The stored adversaries attacked foreign weights. What they teach may not hold against an attack on what is
trained from them, so that is measured: the accuracy on the stored last states beside a fresh attack's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages import randomness
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.judge import Judgement
from stages.training.adapter import Learner
from stages.training.replay import ReplayWindow
from stages.training.rounds import Setup, judge_on_holdout
from stages.training.schedule import Batch
from stages.trajectories.cache import TrajectoryCache


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedTraining:
    """What came of training on foreign shards."""

    weights: dict[str, Tensor]
    updates: int
    foreign_weights: int
    """Number of weights versions that the shards attacked, none of them of this run."""
    stored: Accuracy
    """On the last states of the newest shard, as they were stored."""
    fresh: Judgement
    """The judge's fresh attack on the hold-out."""

    @property
    def disagreement(self) -> float:
        """How much lower the accuracy is under a fresh attack than on the stored adversaries, 0..1."""
        return self.stored.value - self.fresh.robust.value


def train_on_cache(setup: Setup, shards: list[str], *, passes: int) -> CachedTraining:
    """Train the setup's robust classifier on committed shards, ``passes`` times each, in the order they were made.

    Raises LookupError for a shard without a row, ShardError for a damaged one, and ValueError where the shards
    hold other images or another lattice than the setup's.
    """
    cache, config = TrajectoryCache(setup.root), setup.config
    torch.set_num_threads(config.train.threads)
    rows = [cache.ledger.get(name) for name in shards]
    segments = [cache.read(name) for name in shards]
    for part in segments:
        if (part.process.norm, part.process.bound) != (config.attack.norm, config.attack.bound):
            raise ValueError(
                f"the cached shards attack within {part.process.norm} {part.process.bound}/{part.process.denominator}, "
                f"this recipe within {config.attack.norm} {config.attack.bound}/{config.attack.denominator}: "
                "use a run of the same threat model"
            )
    batch = config.schedule.batch
    total = sum(-(-len(part) // batch) for part in segments) * passes
    learner = Learner(setup.build(), config.train, total_updates=total, seed=config.seed)
    window = ReplayWindow(setup.train, setup.device)
    for turn in range(passes):
        for number, part in enumerate(segments):
            window.keep(range(0))
            window.add(number, [part])
            order = randomness.permutation(len(part), config.seed, "cached", turn, number)
            states = randomness.integers(1, part.steps + 1, len(part), config.seed, "cached state", turn, number)
            for first in range(0, len(part), batch):
                slots = order[first : first + batch]
                learner.update(window.batch(_batch(number, slots, states[slots])))
    slots = np.arange(len(segments[-1]))
    last = window.batch(_batch(len(segments) - 1, slots, np.full(len(slots), segments[-1].steps)))
    robust = learner.robust.eval().requires_grad_(False)
    with torch.no_grad():
        right = (robust(last.states).argmax(1) == last.labels).cpu().numpy()
    return CachedTraining(
        weights={name: value.detach().cpu().clone() for name, value in learner.weights().items()},
        updates=learner.updates,
        foreign_weights=len({row.weights for row in rows if row is not None}),
        stored=Accuracy.from_mask(right),
        fresh=judge_on_holdout(robust, setup),
    )


def _batch(number: int, slots: np.ndarray, states: np.ndarray) -> Batch:
    fresh = np.zeros(len(slots), np.bool_)
    return Batch(rounds=np.full(len(slots), number), slots=slots, states=states, fresh=fresh)
