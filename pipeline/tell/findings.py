"""What an evaluation found: as text, as results.json, as a claim, and beside another evaluation's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.measure.checks import Checked, headline
from pipeline.measure.outcome import Evaluation, of_kind, worst_of
from pipeline.tell.results import checks_text, write_results
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.claim import ClaimConfig, leaderboard, radius_text, robustbench_claim
from stages.evaluation.comparison import Comparison
from stages.evaluation.evidence import Table
from stages.evaluation.screening import Screening
from stages.rap.threat import ThreatModel
from stages.report import Contents, write_report
from stages.storage import Storage

WORST_CASE = "robust accuracy (per-image worst case)"


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """Evaluations by name of the model and of the measurement, and what follows from them."""

    data: str
    test: str
    """Fingerprint of the test set, without which two evaluations cannot be paired."""
    evaluations: Mapping[str, Mapping[str, Evaluation]]
    fingerprints: Mapping[str, str]
    seconds: float
    screening: Screening | None = None
    tables: tuple[Table, ...] = ()
    comparison: Comparison | None = None
    checked: Checked | None = None
    """The checks on the first model, in the first ball."""
    contents: Contents | None = None
    """What the report will say."""

    def headlines(self, model: str | None = None) -> dict[ThreatModel, Evaluation]:
        """For each ball, the worst case of every attack that was run on the images, image by image.

        ``model`` is the first where there are several.
        """
        found = list(self.evaluations[model or next(iter(self.evaluations))].values())
        balls = dict.fromkeys(each.threat for each in found)
        return {ball: worst_of([each for each in found if each.threat == ball]) for ball in balls}

    @property
    def headline(self) -> Accuracy:
        """Robust accuracy in the worst case over every attack, those of the checks included, in the first ball."""
        ball, worst = next(iter(self.headlines().items()))
        if self.checked is None:
            return worst.robust
        evaluations = next(iter(self.evaluations.values())).values()
        return headline([each for each in evaluations if each.threat == ball], self.checked)

    @property
    def clean(self) -> Accuracy:
        """Accuracy on the images of the headline as they are."""
        return next(iter(self.headlines().values())).clean

    def claim(self, config: ClaimConfig) -> dict[str, object] | None:
        """RobustBench's claim JSON; None where there is nothing to claim (`unclaimed`)."""
        auto, dataset = self._autoattack, self._leaderboard
        if auto is None or dataset is None or not auto.is_standard:
            return None
        worst = {ball: each.robust for ball, each in self.headlines().items()}
        worst[next(iter(worst))] = self.headline  # which the checks' attacks join
        return robustbench_claim(
            config,
            dataset=dataset,
            threat=auto.threat,
            clean=auto.clean,
            autoattack=auto.robust,
            headline=worst[auto.threat],
            flags=auto.flags,
        )

    @property
    def unclaimed(self) -> str:
        """Why there is no claim, where one might expect it; "" otherwise."""
        auto = self._autoattack
        if auto is None:
            return ""
        if not auto.is_standard:
            return f"no RobustBench claim, which takes AutoAttack standard: {auto.name} was run"
        where = f"{self.data} within {ball_text(auto.threat)}"
        return "" if self._leaderboard else f"no RobustBench claim: it has no leaderboard for {where}"

    @property
    def _autoattack(self) -> Evaluation | None:
        """AutoAttack's evaluation of the first model, of whatever version."""
        return None if self.screening else of_kind(next(iter(self.evaluations.values()), {}), "autoattack")

    @property
    def _leaderboard(self) -> str | None:
        return self._autoattack and leaderboard(self.data, self._autoattack.threat)

    @property
    def artifacts(self) -> list[str]:
        """The receipts behind the figures, as "kind/fingerprint"."""
        places = {place for found in self.evaluations.values() for each in found.values() for place in each.receipts}
        places |= set(self.checked.receipts if self.checked else ())
        return sorted("/".join(place.split("/")[-2:]) for place in places)

    def as_json(self) -> dict[str, object]:
        """Everything, as results.json holds it."""
        return {
            "data": self.data,
            "test": self.test,
            "seconds_now": round(self.seconds, 1),
            "models": {
                name: {
                    "fingerprint": self.fingerprints[name],
                    "measurements": {key: _as_json(each) for key, each in evaluations.items()},
                    "headlines": [_as_json(each, images=True) for each in self.headlines(name).values()],
                }
                for name, evaluations in self.evaluations.items()
            },
            "screening": self.screening and self.screening.as_json(),
            "tables": [_table_json(table) for table in self.tables],
            "comparison": self.comparison and self.comparison.as_json(),
            "headline": self.headline.as_json() if self.evaluations else None,
            "artifacts": self.artifacts,
            "checks": [asdict(check) for check in self.checked.checks] if self.checked else [],
        }

    def __str__(self) -> str:
        lines = [self.data]
        for name, evaluations in self.evaluations.items():
            lines += ["", name] if len(self.evaluations) > 1 else [""]
            clean = dict.fromkeys(each.clean for each in evaluations.values())
            lines += [_line("clean", accuracy) for accuracy in clean]
            if not self.screening:  # whose own interval is the one that holds
                lines += [_line(f"{key}, {ball_text(each.threat)}", each.robust) for key, each in evaluations.items()]
            for ball, worst in self.headlines(name).items():
                if not self.screening:
                    lines.append(_line(f"{WORST_CASE}, {ball_text(ball)}", worst.robust))
                lines += [f"  warning: {flag}" for flag in worst.flags]
        if self.checked:
            lines += ["", _line(f"{WORST_CASE}, with the checks", self.headline)]
            lines += ["", checks_text([asdict(check) for check in self.checked.checks])]
        if self.screening:
            ((ball, evaluation),) = self.headlines().items()
            lines += ["", f"screening by {evaluation.name} within {ball_text(ball)}: {self.screening}"]
        for table in self.tables:
            lines += ["", table_text(table)]
        if self.comparison:
            lines += ["", f"against the other evaluation: {self.comparison}"]
        if self.unclaimed:
            lines += ["", self.unclaimed]
        return "\n".join(lines)


def read_results(path: Path, *, test: str) -> dict[str, Any]:
    """The results.json of another evaluation, by its path or directory.

    Raises ValueError where there is none, or it is of other images than the test set of this fingerprint.
    """
    path = path / "results.json" if path.is_dir() else path
    try:
        other = json.loads(path.read_text())
        theirs, data = other["test"], other["data"]
        other["headlines"] = next(iter(other["models"].values()))["headlines"]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"--compare {path}: no results of an evaluation can be read there ({error})") from error
    if theirs != test:
        raise ValueError(f"--compare {path} was evaluated on other images ({data}): compare on one test set")
    return other


def compare_with(found: Findings, other: Mapping[str, Any]) -> Comparison:
    """Our headline against that of another evaluation in the same ball, on the images that both have.

    Raises ValueError where they have no ball or no image in common.
    """
    ball, theirs = common_ball(list(found.headlines()), other)
    return _paired(found.headlines()[ball], theirs["images"])


def common_ball(balls: Sequence[ThreatModel], other: Mapping[str, Any]) -> tuple[ThreatModel, dict[str, Any]]:
    """The first of our balls in which another evaluation was made too, and its headline there.

    Raises ValueError where there is none.
    """
    for ball in balls:
        for theirs in other["headlines"]:
            if theirs["threat"] == asdict(ball):
                return ball, theirs
    known = ", ".join(ball_text(ThreatModel(**theirs["threat"])) for theirs in other["headlines"])
    mine = ", ".join(dict.fromkeys(map(ball_text, balls)))
    raise ValueError(f"the other model was attacked within {known}, this one within {mine}: use one ball")


def _paired(ours: Evaluation, theirs: dict[str, list]) -> Comparison:
    robust = {row: by is None for row, by in zip(theirs["rows"], theirs["broken_by"], strict=True)}
    mine = zip(ours.rows.tolist(), ours.verdicts, strict=True)
    both = [(by is None, robust[row]) for row, by in mine if row in robust]
    if not both:
        raise ValueError("the other evaluation has no image in common with this one: use as many --images")
    first, second = np.array(both).T
    return Comparison.of(first, second)


def write_findings(found: Findings, directory: Storage, claim: ClaimConfig) -> dict[str, str]:
    """Write results.json, claim.json where there is something to claim, and the report where there were checks;
    returns what was written, by name."""
    written = {"results": write_results(directory, "results.json", found.as_json())}
    claimed = found.claim(claim)
    directory.delete(["claim.json"])  # of an evaluation of the same name, which this one replaces
    if claimed is not None:
        written["claim"] = write_results(directory, "claim.json", claimed)
    if found.contents is not None:
        with directory.folder("report") as folder:
            page = write_report(found.contents, folder).page
        written["report"] = directory.location(f"report/{page.name}")
    return written


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
        low, high = value.interval
        return f"{100 * value.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return "-" if value is None else value if isinstance(value, str) else f"{value:g}"


def _line(name: str, accuracy: Accuracy) -> str:
    return f"{name:54} {accuracy}"


def _as_json(each: Evaluation, *, images: bool = False) -> dict[str, object]:
    found: dict[str, object] = {
        "attack": dict(each.attack),
        "threat": asdict(each.threat),
        "clean": each.clean.as_json(),
        "robust": each.robust.as_json(),
        "broken_by": each.broken_by,
        "flags": list(each.flags),
        "unverified": each.unverified,
        "chunks_attacked_now": each.attacked_now,
        "attack_seconds": round(each.seconds, 1),
        "receipts": list(each.receipts),
    }
    if images:
        found["images"] = {"rows": each.rows.tolist(), "broken_by": list(each.verdicts)}
    return found


def _table_json(table: Table) -> dict[str, object]:
    return {
        "name": table.name,
        "caption": table.caption,
        "columns": list(table.columns),
        "rows": [
            {
                "name": row.name,
                "values": [value.as_json() if isinstance(value, Accuracy) else value for value in row.values],
                "setting": row.setting,
                "source": row.source,
            }
            for row in table.rows
        ],
    }
