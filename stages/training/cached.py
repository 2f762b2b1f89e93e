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
from stages.data.splits import Split
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.judge import Judgement
from stages.numerics import within_memory
from stages.rap.process import AttackProcess
from stages.training.adapter import Learner
from stages.training.batches import RoundExamples
from stages.training.rounds import judge_on_holdout
from stages.training.schedule import Batch
from stages.training.setup import Setup, load_trained
from stages.trajectories.codec import Segments
from stages.trajectories.generate import clean_levels, last_states_checksum
from stages.trajectories.shards import Shard, read_shard


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
    One shard is in memory at a time; ``progress`` gets a line a shard.

    Raises ShardError for a missing or damaged shard, and ValueError where one holds other images or another lattice
    than the setup's; all of them are looked at before the first update.
    """
    config, batch, weights, total = setup.config, setup.config.schedule.batch, set(), 0
    for name in shards:
        shard = read_shard(setup.root, name)
        check_cached(shard, config.attack, setup.train)
        weights.add(shard.row.weights)
        total += -(-shard.row.n // batch) * passes
    with config.train.applied():
        learner = Learner(setup.build_faster(config.train), config.train, total_updates=total, seed=config.seed)
        for turn in range(passes):
            for number, name in enumerate(shards):
                part = read_shard(setup.root, name).segments
                order = randomness.permutation(len(part), config.seed, "cached", turn, number)
                states = randomness.integers(1, part.steps + 1, len(part), config.seed, "cached state", turn, number)
                batches = [
                    Batch(places=order[first : first + batch], states=states[first : first + batch])
                    for first in range(0, len(part), batch)
                ]
                starts = config.train.objective.needs_starts
                examples = RoundExamples([part], batches, setup.train, setup.device, starts=starts)
                with within_memory("schedule.batch", batch):
                    for each in examples.batches(batches):
                        learner.update(each)
                progress(f"cached shards: {number + 1} of {len(shards)}, pass {turn + 1} of {passes}")
        robust = load_trained(setup.build(), learner.weights())
        return CachedTraining(
            weights={name: value.detach().cpu().clone() for name, value in learner.weights().items()},
            updates=learner.updates,
            foreign_weights=len(weights),
            stored=_on_last_states(robust, read_shard(setup.root, shards[-1]).segments, setup),
            fresh=judge_on_holdout(robust, setup),
        )


@torch.no_grad()
def _on_last_states(robust: torch.nn.Module, part: Segments, setup: Setup) -> Accuracy:
    everything = Batch(places=np.arange(len(part)), states=np.full(len(part), part.steps))
    (last,) = RoundExamples([part], [everything], setup.train, setup.device).batches([everything])
    return Accuracy.from_mask((robust(last.states).argmax(1) == last.labels).cpu().numpy())


def check_cached(shard: Shard, ours: AttackProcess, train: Split) -> None:
    """Raise ValueError unless the shard attacks these images in the ball of this attack."""
    theirs = shard.segments.process
    if (theirs.norm, theirs.bound, theirs.denominator) != (ours.norm, ours.bound, ours.denominator):
        raise ValueError(
            f"the cached shards (--train.from-cache) attack within {theirs.norm} {theirs.bound}/{theirs.denominator}, "
            f"this recipe within {ours.norm} {ours.bound}/{ours.denominator}: use a run of the same threat model"
        )
    if _last_states(shard.segments, train) != shard.row.last_states:
        raise ValueError(
            "the cached shards (--train.from-cache) do not decode to the states that were attacked: they belong to "
            "other images than this recipe's training split; use a run on the same data set"
        )


def _last_states(part: Segments, split: Split) -> str | None:
    """The checksum of the last states over the split's images, None where those do not fit the segments at all."""
    index = part.index.numpy()
    if part.shape != split.images.shape[1:] or not np.isin(index, split.rows).all():
        return None
    return last_states_checksum(part.last_states(clean_levels(part, split)))
