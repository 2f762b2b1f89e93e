"""The end of a run: results.json, and the same in a short table."""

import json
import os
from pathlib import Path

from pipeline.plan import Plan
from stages.trajectories.cache import TrajectoryCache
from stages.trajectories.ledger import LedgerRow


def shard_summary(plan: Plan, shards: list[str], before: set[str]) -> dict:
    """Number, size and compression of the shards that a run trained on; ``before`` are those it found committed.

    ``float32_ratio`` compares with the same states as float32 arrays.
    """
    ledger = TrajectoryCache(plan.root).ledger
    rows = [row for row in map(ledger.get, shards) if row is not None]
    if not rows:
        return {"shards": 0, "generated": 0, "bytes": 0}
    pixels = plan.data.channels * plan.data.size**2
    size, segments = sum(row.bytes for row in rows), sum(row.n for row in rows)
    return {
        "shards": len(rows),
        "generated": sum(row.fingerprint not in before for row in rows),
        "segments": segments,
        "attack_steps": sum(row.n * row.k for row in rows),
        "bytes": size,
        "bytes_per_segment": size / segments,
        "float32_ratio": sum(_float32_bytes(row, pixels) for row in rows) / size,
    }


def _float32_bytes(row: LedgerRow, pixels: int) -> int:
    return 4 * row.n * (row.k + 1) * pixels


def write_results(path: Path, results: dict) -> None:
    """Replace results.json by rename."""
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(results, indent=1))
    temporary.replace(path)


def describe_model(results: dict) -> str:
    """The robust classifier in a few words."""
    trained = results["recipe"]["train"]["what"]
    classifier = results["classifier"]["architecture"] + (", itself trained on attacks" if trained != "adapter" else "")
    parameters = results["adapter_parameters"]
    return f"{classifier}, behind a U-Net of {parameters:,} parameters" if parameters else classifier


def table(results: dict) -> str:
    """The short table that ends a run."""
    robust, undefended = results["robust"], results["undefended"]
    threat, shards = results["threat"], results["trajectories"]
    ball = f"{threat['norm']} {threat['radius']:.4g}"
    lines = [
        f"{results['data']}, {ball}, {describe_model(results)}",
        "",
        f"{'':34}{'robust classifier':>28}{'classifier alone':>28}",
        _row("clean", robust["clean"], undefended["clean"]),
        _row(f"PGD-{results['pgd_steps']}", robust["pgd"], undefended["pgd"]),
        _row(f"AutoAttack {results['autoattack']}", robust["autoattack"], undefended["autoattack"]),
        _row("worst of everything, per image", robust["headline"], undefended["headline"]),
        "",
        "percent of test images, with 95 % interval and number of images",
    ]
    lines += ["", checks_text(results["checks"])]
    if robust["flags"]:
        lines += ["", "AutoAttack's own flags:", *(f"  {flag}" for flag in robust["flags"])]
    if robust["unverified"]:
        lines += ["", f"WARNING: {robust['unverified']} of the verdicts did not pass the second look"]
    if results["alarms"]:
        lines += ["", "alarms while training:", *(f"  {alarm}" for alarm in results["alarms"])]
    if shards["shards"]:
        lines += [
            "",
            f"trajectories  {shards['shards']} shards, {shards['generated']} generated now; "
            f"{shards['segments']:,} segments, {shards['bytes'] / 1e6:.1f} MB, "
            f"{shards['float32_ratio']:.0f}x smaller than float32",
        ]
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in results["seconds"].items())
    lines += [f"time          {times}", f"model         {results['paths']['model']}"]
    lines += [f"results       {results['paths']['results']}", f"report        {results['paths']['report']}"]
    return "\n".join(lines)


def checks_text(checks: list[dict]) -> str:
    """How many checks passed, and what the others say."""
    verdicts = ("pass", "warn", "fail", "not applicable")
    found = {verdict: [check for check in checks if check["verdict"] == verdict] for verdict in verdicts}
    lines = [f"{len(found['pass'])} of {len(checks)} checks passed, {len(found['not applicable'])} not applicable"]
    for verdict in ("fail", "warn"):
        lines += [f"  {verdict} {check['number']:2} {check['name']}: {check['figure']}" for check in found[verdict]]
    return "\n".join(lines)


def _row(name: str, robust: dict, undefended: dict) -> str:
    return f"{name:34}{_cell(robust):>28}{_cell(undefended):>28}"


def _cell(accuracy: dict) -> str:
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}] of {accuracy['images']}"
