"""How much attack work a search's trials share, among themselves and with other searches, as their shards lie there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipeline.artifacts import Artifact
from pipeline.inventory import Inventory
from stages.storage import Storage


@dataclass(frozen=True, kw_only=True)
class SharedWork:
    """Attack steps on images, in units of one step on one image."""

    attack_steps: int
    """What the trials take, each by itself."""
    among_trials: int
    """Of these, steps in shards that an earlier trial of the search has as well."""
    with_searches: int
    """Of the others, steps in shards that a trial of another search below the root has."""

    def __str__(self) -> str:
        def of_all(steps: int) -> str:
            return f"{steps:,} ({steps / max(1, self.attack_steps):.1%})"

        return (
            f"attack steps on images: {self.attack_steps:,} for all trials, each by itself; shared between them "
            f"{of_all(self.among_trials)}, with other searches {of_all(self.with_searches)}"
        )

    def as_json(self) -> dict[str, int]:
        return asdict(self)


def shared_work(root: Storage, search: str, trials: Sequence[tuple[str, Artifact]]) -> SharedWork | None:
    """What is shared of the work of a search's trials, each with its folder and its last verdict; None where the
    metrics of one were pruned, and nobody knows its shards any more."""
    inventory = Inventory(root)
    searches = [each for each in inventory.searches if each.folder != f"searches/{search}"]
    others = {trial for each in searches for trial in each.trials or ()}
    elsewhere = {name for trial in others for name in inventory.shards_of(trial)}
    seen: set[str] = set()
    found = {"attack_steps": 0, "among_trials": 0, "with_searches": 0}
    for folder, verdict in trials:
        cost, names = verdict.metrics["cost"], list(inventory.shards_of(folder, verdict.metrics["rounds"]))
        if len(names) < cost["shards"]:
            return None
        each = cost["attack_steps"] / max(1, cost["shards"])
        again = sum(name in seen for name in names)
        there = sum(name in elsewhere and name not in seen for name in names)
        found["attack_steps"] += cost["attack_steps"]
        found["among_trials"] += round(each * again)
        found["with_searches"] += round(each * there)
        seen.update(names)
    return SharedWork(**found)
