"""Results: what both commands tell of what they found, as results.json, as a claim, and as text (`tell.text`)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pipeline.artifacts import BEGUN
from pipeline.measure.findings import Findings
from pipeline.measure.outcome import Evaluation
from pipeline.tell.run_facts import RunFacts
from pipeline.tell.text import ball_text, results_text
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.claim import ClaimConfig, leaderboard, robustbench_claim
from stages.evaluation.comparison import Comparison
from stages.evaluation.evidence import Table
from stages.report import Contents
from stages.storage import Storage


@dataclass(frozen=True, kw_only=True, eq=False)
class Results(Findings):
    """What was found, beside whom, and for a run how its model was made."""

    tables: tuple[Table, ...] = ()
    comparison: Comparison | None = None
    run: RunFacts | None = None

    @classmethod
    def of(cls, found: Findings, *, tables: Sequence[Table] = (), run: RunFacts | None = None) -> "Results":
        """The results that findings give."""
        return cls(**vars(found), tables=tuple(tables), run=run)

    def claim(self, config: ClaimConfig) -> dict[str, object] | None:
        """RobustBench's claim JSON; None where there is nothing to claim (`unclaimed`)."""
        auto, dataset = self.autoattack, self._leaderboard
        if auto is None or dataset is None or not auto.is_standard:
            return None
        worst = {ball: each.robust for ball, each in self.worst_cases().items()}
        worst[next(iter(worst))] = self.robust_accuracy  # which the checks' attacks join
        return robustbench_claim(
            config,
            dataset=dataset,
            threat=auto.threat,
            clean=auto.clean,
            autoattack=auto.robust,
            worst_case=worst[auto.threat],
            flags=auto.flags,
        )

    @property
    def unclaimed(self) -> str:
        """Why there is no claim, where one might expect it; "" otherwise."""
        auto = self.autoattack
        if auto is None:
            return ""
        if not auto.is_standard:
            return f"no RobustBench claim, which takes AutoAttack standard: {auto.name} was run"
        where = f"{self.data} within {ball_text(auto.threat)}"
        return "" if self._leaderboard else f"no RobustBench claim: it has no leaderboard for {where}"

    @property
    def _leaderboard(self) -> str | None:
        return self.autoattack and leaderboard(self.data, self.autoattack.threat)

    @property
    def receipts(self) -> list[str]:
        """Where the artifacts behind the figures lie: of what was made, attacked and checked."""
        attacked = [place for found in self.evaluations.values() for each in found.values() for place in each.receipts]
        made, checked = self.run.origins if self.run else (), self.checked.receipts if self.checked else ()
        return list(dict.fromkeys([*made, *attacked, *checked]))

    def as_json(self) -> dict[str, object]:
        """Everything, as results.json holds it."""
        evaluations = [each for found in self.evaluations.values() for each in found.values()]
        return {
            "data": self.data,
            "test": self.test,
            "robust_accuracy": self._robust_json(self.robust_accuracy) if self.evaluations else None,
            "models": {name: self._model_json(name) for name in self.evaluations},
            "checks": [asdict(check) for check in self.checked.checks] if self.checked else [],
            "screening": self.screening and self.screening.as_json(),
            "tables": [_table_json(table) for table in self.tables],
            "comparison": self.comparison and self.comparison.as_json(),
            "run": self.run and self.run.as_json(),
            "chunks_attacked_now": sum(each.attacked_now for each in evaluations),
            "checks_done_now": self.checked.done_now if self.checked else 0,
            "seconds_now": round(self.seconds, 1),
            "artifacts": sorted("/".join(place.split("/")[-2:]) for place in self.receipts),
        }

    def _model_json(self, name: str) -> dict[str, object]:
        return {
            "fingerprint": self.fingerprints[name],
            "clean": self.clean(name).as_json(),
            "measurements": {key: self._evaluation_json(each) for key, each in self.evaluations[name].items()},
            "worst_cases": [self._evaluation_json(each, images=True) for each in self.worst_cases(name).values()],
        }

    def _evaluation_json(self, each: Evaluation, *, images: bool = False) -> dict[str, object]:
        return {**_as_json(each, images=images), "robust": self._robust_json(each.robust)}

    def _robust_json(self, accuracy: Accuracy) -> dict[str, object]:
        """A robust accuracy with its interval: of a screening the one that holds however it was ended."""
        found: dict[str, object] = {**accuracy.as_json()}
        return found | {"interval": list(self.screening.interval)} if self.screening else found

    def __str__(self) -> str:
        return results_text(self, self.tables, self.comparison, self.run, self.unclaimed)


def write_results(
    found: Results, directory: Storage, *, claim: ClaimConfig | None = None, contents: Contents | None = None
) -> dict[str, str]:
    """Write results.json, with ``claim`` claim.json where there is something to claim, and the report of ``contents``;
    returns where each is, by name."""
    written = {"results": _write(directory, "results.json", found.as_json())}
    directory.delete([BEGUN])
    claimed = found.claim(claim) if claim else None
    directory.delete(["claim.json"])  # of an evaluation of the same name, which this one replaces
    if claimed is not None:
        written["claim"] = _write(directory, "claim.json", claimed)
    if contents is not None:
        from stages.report.page import write_report  # Matplotlib takes its time, and a command may end before

        with directory.folder("report") as folder:
            page = write_report(contents, folder).page
        written["report"] = directory.location(f"report/{page.name}")
    return written


def ending(found: Results, paths: Mapping[str, str]) -> str:
    """What a command prints at its end, with where everything is."""
    return f"\n{found}\n" + "".join(f"\n{name:14}{path}" for name, path in paths.items())


def _write(storage: Storage, name: str, content: Mapping[str, object]) -> str:
    storage.put(name, json.dumps(content, indent=1).encode())
    return storage.location(name)


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
