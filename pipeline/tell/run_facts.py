"""How a run's model was made, for its results: what was chosen, trained and stored, and what that took."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.artifacts import Artifact, Store
from pipeline.axes import resolved
from pipeline.defend.borrowed import cached_fingerprint
from pipeline.defend.plan import Plan
from pipeline.defend.trained import Trained
from pipeline.measure.findings import Findings
from pipeline.tell.trial_table import search_json
from stages.fingerprint import canonical
from stages.training.alarms import alarms_by_kind
from stages.trajectories.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over the shards that a run trained on."""

    shards: int = 0
    segments: int = 0
    attack_steps: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @staticmethod
    def of(ledger: Ledger) -> "Totals":
        """Read from the ledger a batch at a time."""
        total = Totals()
        for batch in ledger.query(columns=["n", "k", "bytes", "seconds"]):
            n, k, size, seconds = (column.to_numpy() for column in batch.columns)
            total = Totals(
                shards=total.shards + len(n),
                segments=total.segments + int(n.sum()),
                attack_steps=total.attack_steps + int((n * k).sum()),
                bytes=total.bytes + int(size.sum()),
                seconds=total.seconds + float(seconds.sum()),
            )
        return total


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFacts:
    """How a run's model was made."""

    name: str
    classifier: str
    """The frozen classifier's architecture, or where it was imported from."""
    adapter_parameters: int
    attack: Mapping[str, object]
    """The training's attack, as the search chose it."""
    search: Mapping[str, object]
    from_cache: Mapping[str, object] | None
    """What was said of first weights from another run's shards."""
    selected: Mapping[str, object]
    """The selected checkpoint: its version, of how many rounds, and the judge's verdict."""
    trajectories: Mapping[str, object]
    training: tuple[Mapping, ...]
    """The lines of metrics.jsonl, of which results.json keeps the alarms."""
    origins: tuple[str, ...]
    """Where the artifacts lie that were made before the loop."""
    seconds: Mapping[str, float]
    """Work of each stage, by whichever call, added up over its workers."""
    paths: Mapping[str, str]
    recipe: Mapping[str, object]
    seconds_now: Mapping[str, float] = field(default_factory=dict)
    """What this call took, by stage."""

    @classmethod
    def of(cls, plan: Plan, trained: Trained, found: Findings) -> "RunFacts":
        """The facts of a run whose model was trained and measured."""
        recipe, setup = plan.recipe, trained.setup
        totals, made = Totals.of(setup.ledger), _origins(plan, trained)
        lines, adapter = setup.journal.lines(), trained.robust.adapter
        return cls(
            name=plan.name,
            classifier=recipe.model.name or recipe.classifier.architecture,
            adapter_parameters=sum(weight.numel() for weight in adapter.parameters()) if adapter else 0,
            attack=canonical(resolved(recipe)),  # pyright: ignore[reportArgumentType]
            search=search_json(trained.searched) if trained.searched else {"trials": []},
            from_cache=trained.from_cache,
            selected=trained.selected,
            trajectories=_shard_summary(plan, totals, trained.generated_now),
            training=tuple(lines),
            origins=tuple(artifact.path for artifacts in made.values() for artifact in artifacts),
            seconds=_work_seconds(made, totals, lines, found),
            paths={
                "run": str(plan.run),
                "model": plan.run.location("model"),
                "results": plan.run.location("results.json"),
                "report": plan.run.location("report/index.html"),
                "metrics": plan.run.location("metrics"),
                "store": plan.root.location("store"),
            },
            recipe=canonical(recipe),  # pyright: ignore[reportArgumentType]
        )

    @property
    def description(self) -> str:
        """The robust classifier in a few words."""
        trains_adapter = self.recipe["train"]["what"] == "adapter"  # pyright: ignore[reportIndexIssue]
        classifier = self.classifier + ("" if trains_adapter else ", itself trained on attacks")
        parameters = self.adapter_parameters
        return f"{classifier}, behind a U-Net of {parameters:,} parameters" if parameters else classifier

    @property
    def alarms(self) -> list[str]:
        """The training's alarms, one a kind."""
        return alarms_by_kind(self.training)

    @property
    def set_aside(self) -> int:
        """Rounds that were made anew after an interruption, on a device that repeats nothing to the bit."""
        return sum(line.get("set_aside", 0) for line in self.training)

    def as_json(self) -> dict[str, object]:
        """All of it but the lines of metrics.jsonl and what lies in the store, which are there."""
        facts = {name: value for name, value in vars(self).items() if name not in ("training", "origins")}
        now = {stage: round(value, 1) for stage, value in self.seconds_now.items()}
        return {**facts, "seconds_now": now, "alarms": self.alarms, "set_aside": self.set_aside}


def _origins(plan: Plan, trained: Trained) -> dict[str, list[Artifact]]:
    """What was made before the loop, by stage: the classifiers, the search, the weights from foreign shards."""
    setup, store = trained.setup, Store(plan.root)
    names = {"classifier": [("classifier", each.classifier_fingerprint) for each in (plan, *plan.others)]}
    if plan.cached:
        names["cached training"] = [("cached-training", cached_fingerprint(setup, list(plan.cached)))]
    made = {
        stage: [artifact for kind, name in each if (artifact := store.get(kind, name))] for stage, each in names.items()
    }
    return made | ({"search": trained.searched.receipts} if trained.searched else {})


def _work_seconds(
    made: Mapping[str, Sequence[Artifact]], totals: Totals, lines: Sequence[Mapping], found: Findings
) -> dict[str, float]:
    """Seconds of work behind a run's figures, by stage: added up over all workers, whichever call it was that worked.

    They come from receipts, the ledger and metrics.jsonl, so that they are the same when the run is called again. An
    attempt that was killed is not in them.
    """
    seconds: dict[str, float] = {
        stage: sum(artifact.manifest["provenance"]["seconds"] for artifact in artifacts)
        for stage, artifacts in made.items()
    }
    seconds["attack"] = totals.seconds
    seconds["training"] = sum(line["seconds"] * (1 - line["waiting"]) for line in lines)
    seconds |= found.seconds_of_work
    return {stage: round(value, 1) for stage, value in seconds.items() if value}


def _shard_summary(plan: Plan, totals: Totals, generated_now: int) -> dict:
    """Number, size and compression of the shards that a run trained on, of which some were made in this call.

    ``float32_ratio`` compares with the same states as float32 arrays.
    """
    if not totals.shards:
        return {"shards": 0, "generated_now": 0, "bytes": 0}
    state = 4 * math.prod(plan.data.shape)
    return {
        "shards": totals.shards,
        "generated_now": generated_now,
        "segments": totals.segments,
        "attack_steps": totals.attack_steps,
        "bytes": totals.bytes,
        "bytes_per_segment": totals.bytes / totals.segments,
        "float32_ratio": state * (totals.attack_steps + totals.segments) / totals.bytes,
    }
