"""What a search leaves for people, in ROOT/searches/NAME."""

import csv
import io
import json
from dataclasses import replace

import pyarrow as pa
from pyarrow import parquet

from pipeline.defend.searching import SEARCH, Searched
from pipeline.fields import flag
from pipeline.progress import Say
from pipeline.recipe_files import recipe_json
from pipeline.tell.trial_table import Row, rows, search_json, search_text
from pipeline.tracking import Tool, TrackedRun
from stages.storage import Storage


def write_search(searched: Searched, folder: Storage, *, preset: str) -> dict[str, str]:
    """Write trials.csv and trials.parquet (a row a trial and rung), report.html, best.json (the recipe that was chosen,
    which --recipe takes) and search.json; returns where each is, by name."""
    from stages.report.page import search_page  # Matplotlib takes its time, and a command may end before
    from stages.report.tried import SearchContents

    found, told = list(rows(searched)), search_json(searched)
    best = replace(searched.recipe, search=replace(searched.recipe.search, trials=0, space=()))
    verdict = told["trials"][searched.chosen]
    noted = json.loads(folder.find(SEARCH) or b"{}")
    trials = [{**before, **now} for before, now in zip(_named(searched, noted), told["trials"], strict=True)]
    needed = [f"classifier/{searched.classifier}", *(each.manifest["name"] for each in searched.receipts)]
    report = SearchContents(
        title=folder.name,
        data=best.data.name,
        threat=best.threat,
        says=tuple(search_text(searched).splitlines()),
        search=told,
        recipe=recipe_json(best, preset)["recipe"],  # pyright: ignore[reportArgumentType]
    )
    contents = {
        "table": ("trials.csv", _csv(found)),
        "parquet": ("trials.parquet", _parquet(found)),
        "report": ("report.html", search_page(report)),
        "best": ("best.json", _json(recipe_json(best, preset) | {"trial": verdict})),
        "search": (SEARCH, _json({**noted, **told, "trials": trials, "artifacts": needed, "finished": True})),
    }
    for name, content in contents.values():
        folder.put(name, content)
    return {name: folder.location(file) for name, (file, _) in contents.items()}


def track_trials(searched: Searched, folder: Storage, tool: Tool, say: Say) -> None:
    """Show every trial in a tracker, with its settings and the verdicts on it."""
    for trial in searched.trials:
        settings = {flag(name): value for name, value in trial.settings.items()}
        tracked = TrackedRun(tool, folder.below(f"trials/{trial.name}"), f"{folder.name}/{trial.name}", settings, say)
        passed = [rung.receipts[trial.number].metrics for rung in searched.rungs if trial.number in rung.receipts]
        tracked.tell(
            (found["rounds"], {f"verdict/{name}": found[name]["value"] for name in ("robust", "clean")})
            for found in passed
        )
        tracked.end()


def _named(searched: Searched, noted: dict) -> list[dict]:
    """What was noted of each trial when it began; its name alone where all verdicts came from another search."""
    known = {each["trial"]: each for each in noted.get("trials", ())}
    return [known.get(trial.number, {"name": trial.name}) for trial in searched.trials]


def _json(content: dict) -> bytes:
    return json.dumps(content, indent=1).encode()


def _csv(found: list[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]))
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().encode()


def _parquet(found: list[Row]) -> bytes:
    columns = {name: [row[name] for row in found] for name in found[0]}
    for name, values in columns.items():
        if len({type(value) for value in values if value is not None}) > 1:  # a column has one type
            columns[name] = [value if value is None else str(value) for value in values]
    content = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), content)
    return content.getvalue().to_pybytes()
