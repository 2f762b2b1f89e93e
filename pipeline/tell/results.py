"""The end of a run: results.json, and the same in a short table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.artifacts import Artifact, Store
from pipeline.defend.borrowed import cached_fingerprint
from pipeline.defend.plan import Plan
from pipeline.defend.trials import search_fingerprint
from pipeline.measure.checks import Checked
from pipeline.measure.outcome import Evaluation
from stages.storage import Storage
from stages.training.setup import Setup
from stages.trajectories.ledger import Ledger


def origins(plan: Plan, setup: Setup) -> dict[str, list[Artifact]]:
    """What was made before the loop, by stage: the classifiers, the search, the weights from foreign shards."""
    store, own = Store(plan.root), plan.setup(setup.classifier)
    names = {"classifier": [("classifier", each.classifier_fingerprint) for each in (plan, *plan.others)]}
    if plan.recipe.search.trials:
        names["search"] = [("search", search_fingerprint(own, plan.recipe))]
    if plan.cached:
        names["cached training"] = [("cached-training", cached_fingerprint(setup, list(plan.cached)))]
    return {
        stage: [artifact for kind, name in each if (artifact := store.get(kind, name))] for stage, each in names.items()
    }


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


def work_seconds(
    plan: Plan, setup: Setup, totals: Totals, found: dict[str, dict[str, Evaluation]], checked: Checked
) -> dict[str, float]:
    """Seconds of work behind a run's figures, by stage: added up over all workers, whichever call it was that worked.

    They come from receipts, the ledger and metrics.jsonl, so that they are the same when the run is called again. An
    attempt that was killed is not in them.
    """
    seconds: dict[str, float] = {
        stage: sum(artifact.manifest["provenance"]["seconds"] for artifact in artifacts)
        for stage, artifacts in origins(plan, setup).items()
    }
    seconds["attack"] = totals.seconds
    seconds["training"] = sum(line["seconds"] * (1 - line["waiting"]) for line in setup.journal.read())
    seconds["evaluation"] = sum(each.seconds for evaluations in found.values() for each in evaluations.values())
    seconds["checks"] = checked.seconds
    return {stage: round(value, 1) for stage, value in seconds.items() if value}


def shard_summary(plan: Plan, totals: Totals, made_now: int) -> dict:
    """Number, size and compression of the shards that a run trained on, of which some were made in this call.

    ``float32_ratio`` compares with the same states as float32 arrays.
    """
    if not totals.shards:
        return {"shards": 0, "generated_now": 0, "bytes": 0}
    state = 4 * plan.data.channels * plan.data.size**2
    return {
        "shards": totals.shards,
        "generated_now": made_now,
        "segments": totals.segments,
        "attack_steps": totals.attack_steps,
        "bytes": totals.bytes,
        "bytes_per_segment": totals.bytes / totals.segments,
        "float32_ratio": state * (totals.attack_steps + totals.segments) / totals.bytes,
    }


def write_results(storage: Storage, name: str, results: Mapping[str, object]) -> str:
    """Write results as JSON; returns where they are."""
    storage.put(name, json.dumps(results, indent=1).encode())
    return storage.location(name)


def describe_model(results: dict) -> str:
    """The robust classifier in a few words."""
    trained = results["recipe"]["train"]["what"]
    classifier = results["classifier"]["architecture"] + (", itself trained on attacks" if trained != "adapter" else "")
    parameters = results["adapter_parameters"]
    return f"{classifier}, behind a U-Net of {parameters:,} parameters" if parameters else classifier


def table(results: dict) -> str:
    """The short table that ends a run."""
    robust, undefended = results["robust"], results["undefended"]
    threat, shards, shipped = results["threat"], results["trajectories"], results["shipped"]
    ball = f"{threat['norm']} {threat['radius']:.4g}"
    lines = [
        f"{results['data']}, {ball}, {describe_model(results)}",
        "",
        f"{'':40}{'robust classifier':>28}{'undefended classifier':>28}",
        _row("clean", robust["clean"], undefended["clean"]),
        *(_row(name, robust["attacks"][name], undefended["attacks"][name]) for name in reversed(robust["attacks"])),
        _row("robust accuracy (per-image worst case)", robust["headline"], undefended["headline"]),
        "",
        "percent of test images, with 95 % interval and number of images",
    ]
    lines += ["", checks_text(results["checks"])]
    if robust["flags"]:
        lines += ["", "warnings:", *(f"  {flag}" for flag in robust["flags"])]
    if results["alarms"]:
        lines += ["", "alarms while training:", *(f"  {alarm}" for alarm in results["alarms"])]
    if shards["shards"]:
        lines += [
            "",
            f"trajectories  {shards['shards']} shards, {shards['generated_now']} generated now; "
            f"{shards['segments']:,} segments, {shards['bytes'] / 1e6:.1f} MB, "
            f"{shards['float32_ratio']:.0f}x smaller than float32",
        ]
    lines += [
        f"work          {_times(results['seconds'])}; total worker time",
        f"this call     {_times(results['seconds_now'])}",
        f"selected      v_{shipped['version']} of {shipped['of']}: best robust accuracy on the hold-out",
        f"model         {results['paths']['model']}",
    ]
    lines += [f"results       {results['paths']['results']}", f"report        {results['paths']['report']}"]
    return "\n".join(lines)


def _times(seconds: dict[str, float]) -> str:
    return ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())


def checks_text(checks: list[dict]) -> str:
    """How many checks passed, and what the others say."""
    verdicts = ("pass", "warn", "fail", "not applicable")
    found = {verdict: [check for check in checks if check["verdict"] == verdict] for verdict in verdicts}
    spared = len(found["not applicable"])
    lines = [
        f"{len(found['pass'])} of {len(checks) - spared} checks passed, {len(found['fail'])} failed, "
        f"{len(found['warn'])} with a warning; {spared} not applicable"
    ]
    for verdict in ("fail", "warn"):
        lines += [f"  {verdict} {check['number']:2} {check['name']}: {check['figure']}" for check in found[verdict]]
    return "\n".join(lines)


def _row(name: str, robust: dict, undefended: dict) -> str:
    return f"{name:40}{_cell(robust):>28}{_cell(undefended):>28}"


def _cell(accuracy: dict) -> str:
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}] of {accuracy['images']}"
