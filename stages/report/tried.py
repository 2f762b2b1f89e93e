"""What a search tried and found: blocks for the report of a run that searched first, and a page of its own.

A search is a mapping as in results.json: ``trials``, each with its settings and the judge's last verdict, and which of
them was ``chosen``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stages.rap.threat import ThreatModel
from stages.report import search_charts, words
from stages.report.document import Block, Chart, Grid, Section
from stages.report.making import accuracy_of, number_of, recipe_blocks

HOLLOW = "Hollow: stopped before, after fewer rounds. Lines are 95 % intervals."


@dataclass(frozen=True, kw_only=True)
class SearchContents:
    """All that the page of a search says."""

    title: str
    data: str
    threat: ThreatModel
    says: tuple[str, ...]
    """What was chosen and what that rests on, a sentence each."""
    search: Mapping[str, object]
    recipe: Mapping[str, object]
    """The recipe that was chosen."""


def sections_of(contents: SearchContents) -> list[Section]:
    """The sections of its page that have content."""
    lead = "Verdicts of the one judge on the hold-out: they select, they are no result."
    made = [
        Section(name="search", title="What was tried", lead=lead, blocks=search_blocks(contents.search)),
        Section(name="recipe", title="The recipe that was chosen", blocks=recipe_blocks(contents.recipe)),
    ]
    return [section for section in made if section.blocks]


def search_blocks(search: Mapping[str, object]) -> tuple[Block, ...]:
    """The trials: clean against robust accuracy, a panel a setting, parallel coordinates, the judge's verdicts rung by
    rung, and a table."""
    trials: list[dict] = [dict(trial) for trial in search.get("trials", ())]  # type: ignore[attr-defined]
    if not trials:
        return ()
    for place, trial in enumerate(trials):
        trial.setdefault("trial", place)
    chosen = search.get("chosen")
    settings = [trial.get("settings") or {} for trial in trials]
    varied = [name for name in settings[0] if len({words.cell(each.get(name)) for each in settings}) > 1]
    judged = [trial for trial in trials if trial.get("robust")]
    best = next((place for place, trial in enumerate(judged) if trial["trial"] == chosen), None)
    charts = [*_front(judged, best), *_panels(judged, varied, best), *_parallel(judged, varied, best)]
    return (*charts, *_rungs(judged, best), _table(trials, varied, chosen))


def _front(judged: list[dict], best: int | None) -> Iterator[Block]:
    known = [trial for trial in judged if trial.get("clean")]
    if len(known) < 2 or len(known) < len(judged):
        return
    points = [(_label(trial), accuracy_of(trial["clean"]), accuracy_of(trial["robust"])) for trial in known]
    says = "; ".join(f"{label}: clean {clean}, under attack {robust}" for label, clean, robust in points)
    svg = search_charts.front(points, _done(known), best)
    note = f"The Pareto front is that of the trials that came to the end. {HOLLOW}"
    yield Chart(name="front", title="Clean against robust accuracy", says=says, svg=svg, note=note)


def _panels(judged: list[dict], varied: list[str], best: int | None) -> Iterator[Block]:
    if len(judged) < 2:
        return
    for number, name in enumerate(varied):
        spoken = name.replace("_", " ")
        points = [(trial["settings"].get(name), accuracy_of(trial["robust"])) for trial in judged]
        says = "; ".join(f"{words.cell(value)}: {words.percent(robust.value)}" for value, robust in points)
        svg = search_charts.panel(spoken, points, _done(judged), best)
        title = f"Robust accuracy against {spoken}"
        yield Chart(name=f"panel-{number}", title=title, says=says, svg=svg, note=HOLLOW)


def _parallel(judged: list[dict], varied: list[str], best: int | None) -> Iterator[Block]:
    if not varied or len(judged) < 2:
        return
    names = [name.replace("_", " ") for name in varied]
    lines = [
        (
            _label(trial),
            [*(trial["settings"].get(name) for name in varied), 100 * accuracy_of(trial["robust"]).value],
        )
        for trial in judged
    ]
    svg = search_charts.parallel([*names, "hold-out (%)"], lines, best)
    says = f"{len(judged)} trials over {', '.join(names)}; the numbers are in the table below."
    note = "A line a trial, darker where the judge found more; shifted a little so that no line hides another."
    yield Chart(name="parallel", title="Settings that were tried", says=says, svg=svg, note=note)


def _rungs(judged: list[dict], best: int | None) -> Iterator[Block]:
    climbs = [
        (_label(trial), [(number_of(rung["rounds"]), number_of(rung["robust"])) for rung in trial.get("rungs") or ()])
        for trial in judged
    ]
    if any(points for _, points in climbs):
        says = "; ".join(f"{label}: " + ", ".join(words.percent(v) for _, v in points) for label, points in climbs)
        note = "At a rung, a trial is stopped where the judge's images tell it apart from those that go on."
        svg = search_charts.rungs(climbs, best)
        yield Chart(name="rungs", title="The judge's verdicts, rung by rung", says=says, svg=svg, note=note)


def _table(trials: list[dict], varied: list[str], chosen: object) -> Grid:
    rows = tuple(
        (
            _label(trial) + (" (chosen)" if trial["trial"] == chosen else ""),
            *(words.cell((trial.get("settings") or {}).get(name)) for name in varied),
            words.cell(trial.get("rounds")),
            words.cell(accuracy_of(trial["robust"]) if trial.get("robust") else trial.get("error")),
            words.cell(accuracy_of(trial["clean"]) if trial.get("clean") else None),
        )
        for trial in trials
    )
    ours = frozenset(place for place, trial in enumerate(trials) if trial["trial"] == chosen)
    columns = ("", *(name.replace("_", " ") for name in varied), "rounds", "hold-out, under attack", "clean")
    return Grid(columns=columns, rows=rows, ours=ours)


def _label(trial: Mapping[str, object]) -> str:
    return f"trial {trial['trial']}"


def _done(trials: list[dict]) -> list[bool]:
    """Which of the trials came to the last rung."""
    rounds = [trial.get("rounds") or 0 for trial in trials]
    return [each == max(rounds) for each in rounds]
