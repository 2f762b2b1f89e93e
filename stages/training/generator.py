"""Generation for one loop: a unit's shard is read where it is there, made where it is not, and made again where it is
damaged."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.rap.robust import RobustClassifier
from stages.training.setup import Setup, load_trained
from stages.trajectories.generate import Unit, generate_unit
from stages.trajectories.shards import AlteredShardError, MissingShardError, Shard, read_shard

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Made:
    """A committed shard, and whether it was made now."""

    shard: Shard
    is_new: bool
    repaired: tuple[str, ...] = ()
    """What was found damaged or missing, and was made again on the way."""


def warn_of_repairs(repaired: tuple[str, ...]) -> None:
    """Say what was made again, in a process whose warnings are seen."""
    for damage in repaired:
        logger.warning("made again: %s", damage)


class Generator:
    """Generates units, keeping the robust classifier of the last version it was asked for.

    Two threads may share it: they attack in turns, and read, pack and write at any time.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._robust: RobustClassifier | None = None
        self._own: dict[str, Tensor] = {}
        self._held: str | None = None
        self._turn = threading.Lock()

    def shard(self, unit: Unit, weights: Callable[[], dict[str, Tensor]]) -> Made:
        """The unit's committed shard; ``weights`` gives the version's weights where they are not held yet."""
        repaired: tuple[str, ...] = ()
        try:
            return Made(read_shard(self.setup.root, unit.fingerprint), is_new=False)
        except MissingShardError:
            pass
        except AlteredShardError as damage:
            repaired = (str(damage),)
        parent = self.find(unit.parent) if unit.parent else None
        shard = generate_unit(
            unit,
            lambda: self._model(unit.weights, weights),
            self.setup.train,
            self.setup.root,
            parent=parent.shard.segments if parent else None,
            run=self.setup.label,
            turn=self._turn,
        )
        return Made(shard, is_new=True, repaired=repaired + (parent.repaired if parent else ()))

    def find(self, name: str) -> Made:
        """A shard of an earlier round, made again from kept weights where it is missing or damaged.

        Raises ShardError where they were not kept.
        """
        try:
            return Made(read_shard(self.setup.root, name), is_new=False)
        except (MissingShardError, AlteredShardError) as damage:
            found = self._remembered(name)
            if found is None:
                train = self.setup.run.location("train")
                raise type(damage)(
                    f"{damage}, or remove {train}, and the same command repeats this run's updates, and on their way "
                    "makes this shard again"
                ) from damage
            unit, weights = found
            made = self.shard(unit, lambda: weights)
            return replace(made, repaired=tuple(dict.fromkeys((str(damage), *made.repaired))))

    def _remembered(self, name: str) -> tuple[Unit, dict[str, Tensor]] | None:
        """The unit of a shard of an earlier round and the weights that it attacked, where they were kept."""
        previous: dict[int, str] = {}
        for line in self.setup.journal.read():
            if name in line["shards"]:
                units = self.setup.units.of(line["round"], line["attacked"], previous)
                unit = next(each for each in units if each.fingerprint == name)
                version = self.setup.versions.find(line["version"])
                return (unit, version.weights) if version else None
            visits = self.setup.schedule.visits(line["round"])
            previous |= {visit.cohort: shard for visit, shard in zip(visits, line["shards"], strict=True)}
        return None

    def _model(self, name: str, weights: Callable[[], dict[str, Tensor]]) -> RobustClassifier:
        """The robust classifier with the weights of a version."""
        if self._robust is None:
            self._robust = load_trained(self.setup.build_faster(self.setup.config.attack), weights())
            self._own = self._robust.state_dict()
        elif self._held != name:
            found = weights()  # load_state_dict would check again what the first ones have shown, one by one
            torch._foreach_copy_([self._own[each] for each in found], list(found.values()))  # pyright: ignore[reportPrivateImportUsage]
        self._held = name
        return self._robust
