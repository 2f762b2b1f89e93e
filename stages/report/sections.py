"""The sections of a report: contents in, blocks out, in the order in which they are read."""

from collections.abc import Mapping

from stages.evaluation.accuracy import Accuracy
from stages.report import charts, words
from stages.report.contents import Contents
from stages.report.document import Block, Bullets, Chart, Fold, Grid, Section, Text
from stages.report.galleries import picture_galleries, trajectory_gallery
from stages.report.making import lineage_blocks, recipe_blocks, time_blocks, training_blocks
from stages.report.tried import search_blocks

INTERVALS = "Brackets hold the 95 % interval (Wilson) of the number of images."


def build(contents: Contents) -> list[Section]:
    """All sections that have content."""
    made = [
        Section(name="results", title="Results", lead=INTERVALS, blocks=tuple(_results(contents))),
        Section(
            name="checks",
            title="Is the robust accuracy to be believed?",
            lead=words.verdict(contents.checks),
            blocks=tuple(_checks(contents)),
        ),
        Section(name="pictures", title="Pictures", blocks=tuple(_pictures(contents))),
        Section(name="curves", title="Accuracy against the attack", blocks=tuple(_curves(contents))),
        Section(name="broken", title="Which attack broke what", blocks=tuple(_broken(contents))),
        Section(name="tables", title="Beside the paper and the field", blocks=tuple(_tables(contents))),
        Section(name="training", title="Training", blocks=training_blocks(contents)),
        Section(name="search", title="Search", blocks=search_blocks(contents.search)),
        Section(name="recipe", title="Recipe", blocks=recipe_blocks(contents.recipe)),
        Section(
            name="lineage",
            title="Where the figures come from",
            blocks=(*time_blocks(contents), *lineage_blocks(contents)),
        ),
    ]
    return [section for section in made if section.blocks or section.name == "checks"]


AT_A_GLANCE = 4  # attacks in the overview


def glance(contents: Contents) -> Chart:
    """The clean and the robust accuracy and the first attacks, beside the undefended classifier; the table has all."""
    first, *attacks, last = _accuracies(contents)
    rows = [first, *attacks[:AT_A_GLANCE], last]
    undefended = any(alone for _, _, alone in rows)
    says = "; ".join(f"{name}: {_pair(robust, alone)}" for name, robust, alone in rows)
    return Chart(name="glance", title="At a glance", says=says, svg=charts.glance(rows, undefended))


def _accuracies(contents: Contents) -> list[tuple[str, Accuracy | None, Accuracy | None]]:
    return [
        ("clean", contents.clean, contents.undefended_clean),
        *((each.name, each.robust, each.undefended) for each in contents.attacks),
        ("robust accuracy (per-image worst case)", contents.robust_accuracy, contents.undefended_robust_accuracy),
    ]


def _pair(robust: Accuracy | None, alone: Accuracy | None) -> str:
    return words.cell(robust) if alone is None else f"{words.cell(robust)}, undefended classifier {words.cell(alone)}"


def _results(contents: Contents) -> list[Block]:
    rows = _accuracies(contents)
    both = any(alone for _, _, alone in rows)
    columns = ("", "robust classifier", "undefended classifier") if both else ("", "accuracy")
    cells = [(name, words.cell(robust), words.cell(alone))[: len(columns)] for name, robust, alone in rows]
    worst = (
        "An image counts as robust only if it remains so under all that was run on it (rows say on how many): "
        f"{', '.join(contents.worst_of)}."
    )
    grid = Grid(columns=columns, rows=tuple(cells), ours=frozenset({len(cells) - 1}))
    notes = (Bullets(items=contents.notes),) if contents.notes else ()
    return [grid, Text(text=worst), *notes]


def _checks(contents: Contents) -> list[Block]:
    blocks: list[Block] = []
    if contents.flags:
        blocks += [Bullets(items=contents.flags, mark="warn")]
    if not contents.checks:
        return blocks
    checks = sorted(contents.checks, key=lambda check: check.number)
    rows = tuple(
        (f"{check.number}. {check.name}", check.verdict, check.figure, words.cell(check.images or None), check.says)
        for check in checks
    )
    columns = ("check", "verdict", "found", "images", "what it means")
    blocks.append(Grid(columns=columns, rows=rows, verdicts=tuple(check.verdict for check in checks)))
    if contents.probes:
        rows = tuple((each.name, words.cell(each.robust)) for each in contents.probes)
        says = Text(text="Attacks at smaller radii and probes among it. All of it counts in the robust accuracy.")
        probes = Grid(columns=("", "accuracy"), rows=rows)
        blocks.append(Fold(title="What the checks tried within the ball", blocks=(says, probes)))
    evidence = tuple(
        (f"{check.number}. {check.name}", key, _brief(value))
        for check in checks
        for key, value in check.evidence.items()
    )
    if evidence:
        table = Grid(columns=("check", "quantity", "value"), rows=evidence)
        blocks.append(Fold(title="The numbers behind the checks", blocks=(table,)))
    return blocks


def _brief(value: object) -> str:
    """A value of evidence, cut where a page has no room for it; report.json holds all of it."""
    text = words.cell(value)
    return text if len(text) <= 160 else f"{text[:150]} … (in full in report.json)"


def _pictures(contents: Contents) -> list[Block]:
    trajectories = [trajectory_gallery(contents, number) for number in range(len(contents.trajectories))]
    return [*picture_galleries(contents), *trajectories]


def _curves(contents: Contents) -> list[Block]:
    blocks: list[Block] = []
    for number, x in enumerate(dict.fromkeys(curve.x for curve in contents.curves)):
        curves = [curve for curve in contents.curves if curve.x == x]
        counts = sorted({accuracy.images for curve in curves for _, accuracy in curve.points})
        images = " to ".join(words.cell(count) for count in ([counts[0], counts[-1]] if len(counts) > 1 else counts))
        rows = tuple(
            (curve.name, words.cell(place), words.cell(found)) for curve in curves for place, found in curve.points
        )
        says = "; ".join(
            f"{curve.name}: "
            + ", ".join(f"{words.percent(found.value)} at {words.cell(place)}" for place, found in curve.points)
            for curve in curves
        )
        mark = contents.threat.radius if x.startswith("radius") else None
        blocks.append(
            Chart(
                name=f"curve-{number}",
                title=f"Accuracy against {x}",
                says=says,
                svg=charts.accuracy_curves(x, curves, mark),
                note=f"{images} images a point; bands are 95 % intervals.",
                numbers=Grid(columns=("attack", x, "accuracy"), rows=rows),
            )
        )
    return blocks


def _broken(contents: Contents) -> list[Block]:
    if not contents.broken:
        return []
    models = [(each.model, each.images, _causes(each.by)) for each in contents.broken]
    names = list(dict.fromkeys(name for _, _, by in models for name in by))
    rows = (
        ("images", *(words.cell(images) for _, images, _ in models)),
        (charts.ROBUST, *(words.cell(images - sum(by.values())) for _, images, by in models)),
        *((name, *(words.cell(by.get(name, 0)) for _, _, by in models)) for name in names),
    )
    says = "; ".join(
        f"{model}: {images - sum(by.values())} of {images} remain robust, "
        + ", ".join(f"{count} {name}" for name, count in by.items())
        for model, images, by in models
    )
    numbers = Grid(columns=("", *(model for model, _, _ in models)), rows=rows, ours=frozenset({1}), narrow=True)
    note = "Each image counts once, under the first attack that broke it."
    svg = charts.broken_by(models)
    return [Chart(name="broken", title="Images by the attack that broke them", says=says, svg=svg, note=note), numbers]


def _causes(by: Mapping[str, int]) -> dict[str, int]:
    """What broke the images, beginning with those that nothing had to break."""
    clean = {"wrong without attack": by["clean"]} if "clean" in by else {}
    return clean | {name: count for name, count in by.items() if name != "clean"}


def _tables(contents: Contents) -> list[Block]:
    return [
        Grid(
            caption=f"{table.name}. {table.caption}",
            columns=("", *table.columns, "setting", "source"),
            rows=tuple(
                (row.name, *map(words.cell, row.values), row.setting or words.MISSING, row.source or "measured here")
                for row in table.rows
            ),
            ours=frozenset(place for place, row in enumerate(table.rows) if not row.source),
        )
        for table in contents.tables
    ]
