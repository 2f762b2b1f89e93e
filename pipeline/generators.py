"""What a generator actor does, apart from the loop that feeds it: its process imports no Ray Train."""

from cluster.pool import Ref
from stages.training import rounds
from stages.trajectories.cache import TrajectoryCache
from stages.trajectories.generate import Unit
from stages.trajectories.ledger import LedgerRow


class GeneratorWorker:
    """A generator actor: it keeps the loop's setup and the weights of the last version that it attacked."""

    def __init__(self) -> None:
        self.generator: rounds.Generator | None = None

    def generate(self, unit: Unit, refs: list[Ref]) -> LedgerRow:
        """Make and commit the unit's shard. ``refs`` hold the setup and the version's weights."""
        setup, weights = refs
        if self.generator is None:
            loop = setup.get()
            self.generator = rounds.Generator(loop, TrajectoryCache(loop.root))
        return self.generator.generate(unit, weights.get)
