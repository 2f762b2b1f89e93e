"""Results as text: what a command prints at its end, and a notebook prints of an evaluation."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.measure.chunks import SPOKEN
from pipeline.measure.findings import Findings
from pipeline.tell.run_facts import RunFacts
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.claim import radius_text
from stages.evaluation.comparison import Comparison
from stages.evaluation.evidence import Check, Table
from stages.rap.threat import ThreatModel
from stages.report.words import interval

WORST_CASE = "robust accuracy (per-image worst case)"
CELL = 28  # characters


def results_text(
    found: Findings,
    tables: Sequence[Table],
    comparison: Comparison | None,
    run: RunFacts | None,
    unclaimed: str,
) -> str:
    """All that is to be said of what was found, some of it beside others."""
    parts = [
        _table(found, run),
        checks_text(found.checked.checks) if found.checked else "",
        _warnings(found),
        *map(table_text, tables),
        f"against the other results: {comparison}" if comparison else "",
        "\n".join(_made(run)) if run else unclaimed,
    ]
    return "\n\n".join(part for part in parts if part)


def _table(found: Findings, run: RunFacts | None) -> str:
    """Accuracies, a column for each model."""
    balls = found.balls
    one = [ball_text(balls[0])] if len(balls) == 1 else []
    title = ", ".join([found.data, *one, *([run.description] if run else [])])
    if not balls:
        return title
    rows = {"clean": [found.clean(model) for model in found.evaluations]}
    if not found.screening:  # whose own interval is the one that holds
        rows |= _robust_rows(found, "{name}" if one else "{name}, {ball}")
    width = max(map(len, rows)) + 2
    heads = [SPOKEN.get(model, model).removeprefix("the ") for model in found.evaluations]
    lines = [title, "", f"{'':{width}}{''.join(f'{head:>{CELL}}' for head in heads)}"]
    for name, accuracies in rows.items():
        cells = (f"{_cell(accuracy)} of {accuracy.images}" for accuracy in accuracies)
        lines.append(f"{name:{width}}{''.join(f'{cell:>{CELL}}' for cell in cells)}")
    if found.screening:
        ((ball, worst),) = found.worst_cases().items()
        lines += ["", f"screening by {worst.name} within {ball_text(ball)}: {found.screening}"]
    return "\n".join([*lines, "", "percent of test images, with 95 % interval and number of images"])


def _robust_rows(found: Findings, title: str) -> dict[str, list[Accuracy]]:
    """What remains robust under each attack, of each model, and in the worst case in each ball."""
    rows = {}
    for name, each in reversed(list(found.first.items())):
        accuracies = [evaluations[name].robust for evaluations in found.evaluations.values()]
        rows[title.format(name=name, ball=ball_text(each.threat))] = accuracies
    for ball in found.balls:
        worst = [found.worst_cases(model)[ball].robust for model in found.evaluations]
        if ball == found.balls[0]:
            worst[0] = found.robust_accuracy  # which the checks' attacks join
        rows[title.format(name=WORST_CASE, ball=ball_text(ball))] = worst
    return rows


def _warnings(found: Findings) -> str:
    flags = [
        f"  {SPOKEN.get(model, model)}: {flag}"
        for model in found.evaluations
        for worst in found.worst_cases(model).values()
        for flag in worst.flags
    ]
    return "\n".join(["warnings:", *flags]) if flags else ""


def _made(run: RunFacts) -> Iterator[str]:
    """How the model of a run was made, and what that took."""
    if run.alarms:
        yield from ["alarms while training:", *(f"  {alarm}" for alarm in run.alarms), ""]
    if run.trajectories["shards"]:
        yield (
            "trajectories  {shards} shards, {generated_now} generated now; {segments:,} segments, {megabytes:.1f} MB, "
            "{float32_ratio:.0f}x smaller than float32"
        ).format(**run.trajectories, megabytes=run.trajectories["bytes"] / 1e6)  # pyright: ignore[reportOperatorIssue]
    yield f"work          {_times(run.seconds)}; total worker time"
    yield f"this call     {_times(run.seconds_now)}"
    yield f"selected      v_{run.selected['version']} of {run.selected['of']}: best robust accuracy on the hold-out"


def _times(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())


def checks_text(checks: Sequence[Check]) -> str:
    """How many checks passed, and what the others say."""
    found = {verdict: [check for check in checks if check.verdict == verdict] for verdict in ("pass", "warn", "fail")}
    applied = sum(map(len, found.values()))
    lines = [
        f"{len(found['pass'])} of {applied} checks passed, {len(found['fail'])} failed, "
        f"{len(found['warn'])} with a warning; {len(checks) - applied} not applicable"
    ]
    for verdict in ("fail", "warn"):
        lines += [
            f"  {verdict} {check.number:2} {check.name}: {check.figure}. {check.says}" for check in found[verdict]
        ]
    return "\n".join(lines)


def ball_text(threat: ThreatModel) -> str:
    """A ball as people write it, such as "Linf 8/255"."""
    return f"{threat.norm} {radius_text(threat.radius)}"


def table_text(table: Table) -> str:
    """A table with a row a line, and each row's setting below it where it has one."""
    cells = [[row.name, *map(_cell, row.values)] for row in table.rows]
    grid = [["", *table.columns], *cells]
    widths = [max(len(line[column]) for line in grid) for column in range(len(grid[0]))]
    lines = [f"{table.name}: {table.caption}", ""]
    for number, line in enumerate(grid):
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append("  ".join([line[0].ljust(widths[0]), *padded[1:]]))
        setting = table.rows[number - 1].setting if number else ""
        lines += [f"    {setting}"] if setting else []
    return "\n".join(lines)


def _cell(value: Accuracy | float | str | None) -> str:
    if isinstance(value, Accuracy):
        return f"{100 * value.value:.1f} {interval(value)}"
    return "-" if value is None else value if isinstance(value, str) else f"{value:g}"
