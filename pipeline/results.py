"""The end of a run: results.json, and the same in a short table."""

import json
from collections.abc import Mapping

from pipeline.artifacts import Artifact, Store
from pipeline.cached import cached_fingerprint
from pipeline.evaluation import Evaluation
from pipeline.examination import Checked
from pipeline.plan import Plan
from pipeline.search import search_fingerprint
from stages.storage import Storage
from stages.training.setup import Setup
from stages.trajectories.ledger import LedgerRow


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


def work_seconds(
    plan: Plan, setup: Setup, rows: list[LedgerRow], found: dict[str, dict[str, Evaluation]], checked: Checked
) -> dict[str, float]:
    """Seconds of work behind a run's figures, by stage: added up over all workers, whichever call it was that worked.

    They come from receipts, the ledger and metrics.jsonl, so that they are the same when the run is called again. An
    attempt that was killed is not in them.
    """
    seconds: dict[str, float] = {
        stage: sum(artifact.manifest["provenance"]["seconds"] for artifact in artifacts)
        for stage, artifacts in origins(plan, setup).items()
    }
    seconds["attack"] = sum(row.seconds for row in rows)
    seconds["training"] = sum(line["seconds"] * (1 - line["waiting"]) for line in setup.journal.lines())
    seconds["evaluation"] = sum(each.seconds for evaluations in found.values() for each in evaluations.values())
    seconds["checks"] = checked.seconds
    return {stage: round(value, 1) for stage, value in seconds.items() if value}


def shard_summary(plan: Plan, rows: list[LedgerRow], made_now: int) -> dict:
    """Number, size and compression of the shards that a run trained on, of which some were made in this call.

    ``float32_ratio`` compares with the same states as float32 arrays.
    """
    if not rows:
        return {"shards": 0, "generated_now": 0, "bytes": 0}
    pixels = plan.data.channels * plan.data.size**2
    size, segments = sum(row.bytes for row in rows), sum(row.n for row in rows)
    return {
        "shards": len(rows),
        "generated_now": made_now,
        "segments": segments,
        "attack_steps": sum(row.n * row.k for row in rows),
        "bytes": size,
        "bytes_per_segment": size / segments,
        "float32_ratio": sum(_float32_bytes(row, pixels) for row in rows) / size,
    }


def _float32_bytes(row: LedgerRow, pixels: int) -> int:
    return 4 * row.n * (row.k + 1) * pixels


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
        f"{'':34}{'robust classifier':>28}{'classifier alone':>28}",
        _row("clean", robust["clean"], undefended["clean"]),
        *(_row(name, robust["attacks"][name], undefended["attacks"][name]) for name in reversed(robust["attacks"])),
        _row("worst of everything, per image", robust["headline"], undefended["headline"]),
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
        f"work          {_times(results['seconds'])}; of all workers, in this call or before",
        f"this call     {_times(results['seconds_now'])}",
        f"shipped       v_{shipped['version']} of {shipped['of']}, which the judge liked best",
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
    return f"{name:34}{_cell(robust):>28}{_cell(undefended):>28}"


def _cell(accuracy: dict) -> str:
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}] of {accuracy['images']}"
