"""Training on another run's committed shards: reuse of what was attacked elsewhere, with its limits said aloud.

The stored adversaries attacked foreign weights. What they teach may not hold against an attack on what is
trained from them, so that is measured: the accuracy on the stored last states beside a fresh attack's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages import randomness
from stages.data.augmentation import augment
from stages.data.splits import Split
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.judge import Judgement
from stages.training.adapter import Learner
from stages.training.replay import ReplayWindow
from stages.training.rounds import Setup, judge_on_holdout, load_trained
from stages.training.schedule import Batch
from stages.trajectories.cache import TrajectoryCache, last_states_checksum
from stages.trajectories.codec import Segments
from stages.trajectories.ledger import LedgerRow


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


def train_on_cache(
    setup: Setup, shards: list[str], *, passes: int, progress: Callable[[str], None] = lambda line: None
) -> CachedTraining:
    """Train the setup's robust classifier on committed shards, ``passes`` times each, in the order they were made.
    ``progress`` gets a line a shard.

    Raises LookupError for a shard without a row, ShardError for a damaged one, and ValueError where the shards
    hold other images or another lattice than the setup's.
    """
    cache, config = TrajectoryCache(setup.root), setup.config
    rows = [cache.ledger.get(name) for name in shards]
    segments = [cache.read(name) for name in shards]
    for part, row in zip(segments, rows, strict=True):
        _check(part, row, setup)
    with config.train.applied():
        batch = config.schedule.batch
        total = sum(-(-len(part) // batch) for part in segments) * passes
        learner = Learner(setup.build_faster(), config.train, total_updates=total, seed=config.seed)
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
                progress(f"cached shards: {number + 1} of {len(segments)}, pass {turn + 1} of {passes}")
        robust = load_trained(setup.build(), learner.weights())
        slots = np.arange(len(segments[-1]))
        last = window.batch(_batch(len(segments) - 1, slots, np.full(len(slots), segments[-1].steps)))
        with torch.no_grad():
            right = (robust(last.states).argmax(1) == last.labels).cpu().numpy()
        return CachedTraining(
            weights={name: value.detach().cpu().clone() for name, value in learner.weights().items()},
            updates=learner.updates,
            foreign_weights=len({row.weights for row in rows if row is not None}),
            stored=Accuracy.from_mask(right),
            fresh=judge_on_holdout(robust, setup),
        )


def _check(part: Segments, row: LedgerRow | None, setup: Setup) -> None:
    """Raise ValueError unless the shard attacks this recipe's images in this recipe's ball."""
    theirs, ours = part.process, setup.config.attack
    if (theirs.norm, theirs.bound, theirs.denominator) != (ours.norm, ours.bound, ours.denominator):
        raise ValueError(
            f"the cached shards attack within {theirs.norm} {theirs.bound}/{theirs.denominator}, "
            f"this recipe within {ours.norm} {ours.bound}/{ours.denominator}: use a run of the same threat model"
        )
    if row is None or _last_states(part, setup.train) != row.last_states:
        raise ValueError(
            "the cached shards do not decode to the states that were attacked: they belong to other images than "
            "this recipe's training split; use a run on the same data set"
        )


def _last_states(part: Segments, split: Split) -> str | None:
    """The checksum of the last states over the split's images, None where those do not fit the segments at all."""
    index = part.index.numpy()
    if part.shape != split.images.shape[1:] or not np.isin(index, split.rows).all():
        return None
    images = torch.from_numpy(split.images[split.positions(index)])
    if part.augmentation is not None:
        images = augment(images, part.augmentation)
    clean = part.process.lattice.from_bytes(images)
    return last_states_checksum(part.states_at(clean, torch.full((len(part),), part.steps)))


def _batch(number: int, slots: np.ndarray, states: np.ndarray) -> Batch:
    fresh = np.zeros(len(slots), np.bool_)
    return Batch(rounds=np.full(len(slots), number), slots=slots, states=states, fresh=fresh)
