"""How a model came about: blocks for its training, its recipe, its lineage and its times."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.evaluation.accuracy import Accuracy
from stages.report import charts, words
from stages.report.contents import Contents, LineageEntry
from stages.report.document import Block, Bullets, Chart, Fold, Grid

LOSSES = ("loss", "cross_entropy", "reconstruction", "kl", "consistency")
SHARES = {"attack_success": "attacks that succeed", "zero_gradients": "zero gradients", "waiting": "time waiting"}
FINGERPRINTS = 3  # of artifacts of one kind that are shown; report.json has all


def training_blocks(contents: Contents) -> tuple[Block, ...]:
    """The judge's verdicts, losses, shares of what was generated, and alarms."""
    rounds = [dict(line) for line in contents.training]
    if not rounds:
        return (Bullets(items=contents.alarms, mark="warn"),) if contents.alarms else ()
    updates = [number_of(line["updates"]) for line in rounds]
    blocks: list[Block] = [*_judge(contents, rounds), *_losses(rounds, updates)]
    shares = {label: _column(rounds, name) for name, label in SHARES.items() if _known(_column(rounds, name))}
    if shares:
        says = "; ".join(f"{label}: median {words.percent(_median(values))}" for label, values in shares.items())
        percents = {label: [100 * value for value in values] for label, values in shares.items()}
        svg = charts.lines("shares", updates, percents, y="share (%)")
        blocks.append(Chart(name="shares", title="Generation", says=says, svg=svg, note=f"{says}."))
    if contents.alarms:
        blocks.append(Bullets(items=contents.alarms, mark="warn"))
    return tuple(blocks)


def _judge(contents: Contents, rounds: list[dict]) -> Iterator[Block]:
    points = [
        (number_of(line["updates"]), accuracy_of(line["judge"]["clean"]), accuracy_of(line["judge"]["robust"]))
        for line in rounds
        if line.get("judge")
    ]
    if not points:
        return
    shipped = next(
        (number_of(line["updates"]) for line in rounds if line["round"] + 1 == contents.shipped_version), None
    )
    best = max(points, key=lambda point: (point[2].value, point[0]))  # of ties the last, as it is selected
    says = f"The judge's best verdict under attack is {best[2]}, after {words.cell(int(best[0]))} updates."
    yield Chart(
        name="judge",
        title="The judge's verdicts on the hold-out",
        says=says,
        svg=charts.judged(points, shipped),
        note=f"{says} Used for selection only: the attack is weaker than the final ones. Bands are 95 % intervals.",
        numbers=Grid(
            columns=("updates", "clean", "under attack"),
            rows=tuple((words.cell(int(place)), str(clean), str(robust)) for place, clean, robust in points),
        ),
    )


def _losses(rounds: list[dict], updates: list[float]) -> Iterator[Block]:
    losses = {name.replace("_", " "): _column(rounds, name) for name in LOSSES if _known(_column(rounds, name))}
    if losses:
        says = "; ".join(
            f"{name}: {words.cell(_known(v)[0])} at first, {words.cell(_known(v)[-1])} at last"
            for name, v in losses.items()
        )
        note = f"Pale: single rounds; lines: running median of {charts.SMOOTHED}." if _smoothed(rounds) else ""
        svg = charts.lines("losses", updates, losses, y="loss")
        yield Chart(name="losses", title="Losses", says=says, svg=svg, note=note)


def recipe_blocks(recipe: Mapping[str, object]) -> tuple[Block, ...]:
    """One table a part of the recipe, with the loose settings first."""
    if not recipe:
        return ()
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            parts[name].update(_leaves(value, ""))
        else:
            parts["general"][name] = words.cell(value)
    order = sorted(parts, key=lambda name: name != "general")
    tables = [Grid(columns=(name, ""), rows=tuple(parts[name].items())) for name in order if parts[name]]
    return (Fold(title="All settings", blocks=tuple(tables)),)


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, each in value.items():
        if isinstance(each, Mapping):
            yield from _leaves(each, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", words.cell(each)


def time_blocks(contents: Contents) -> tuple[Block, ...]:
    """How much work each stage was."""
    if not contents.seconds:
        return ()
    spoken = [words.duration(seconds) for seconds in contents.seconds.values()]
    says = "; ".join(f"{name}: {text}" for name, text in zip(contents.seconds, spoken, strict=True))
    total = words.duration(sum(contents.seconds.values()))
    note = f"{total} of work, added up over all workers and calls; workers side by side take less time."
    return (
        Chart(
            name="times", title="Work of each stage", says=says, svg=charts.times(contents.seconds, spoken), note=note
        ),
    )


def lineage_blocks(contents: Contents) -> tuple[Block, ...]:
    """Every artifact with its fingerprint, commit, device and time, a row a kind; and the versions of the packages."""
    if not contents.lineage:
        return ()
    kinds: dict[str, list[LineageEntry]] = defaultdict(list)
    for artifact in contents.lineage:
        kinds[artifact.kind].append(artifact)
    rows = tuple(
        (
            f"{kind} ({len(made)})" if len(made) > 1 else kind,
            _some([artifact.fingerprint for artifact in made]),
            _distinct(artifact.commit[:12] for artifact in made),
            _distinct(artifact.device for artifact in made),
            words.duration(sum(known))
            if (known := [a.seconds for a in made if a.seconds is not None])
            else words.MISSING,
            _span([artifact.created for artifact in made if artifact.created]),
        )
        for kind, made in kinds.items()
    )
    columns = ("artifact", "fingerprint", "commit", "device", "time", "made")
    versions: dict[str, dict[str, None]] = defaultdict(dict)
    for artifact in contents.lineage:
        for package, version in artifact.packages.items():
            versions[package][version] = None
    packages = tuple((name, ", ".join(found)) for name, found in sorted(versions.items()))
    beside = (Grid(columns=("package", "version"), rows=packages, narrow=True),) if packages else ()
    return (*beside, Grid(columns=columns, rows=rows, caption="What was made on the way, and by which code."))


def _some(fingerprints: Sequence[str]) -> str:
    shown = ", ".join(fingerprint[:12] for fingerprint in fingerprints[:FINGERPRINTS])
    more = len(fingerprints) - FINGERPRINTS
    return f"{shown} and {more} more" if more > 0 else shown


def _distinct(values: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, values))) or words.MISSING


def _span(created: list[str]) -> str:
    if not created:
        return words.MISSING
    first, last = min(created), max(created)
    return first if first == last else f"{first} to {last}"


def accuracy_of(counted: Mapping[str, Any]) -> Accuracy:
    """The accuracy of the counts in a JSON."""
    return Accuracy(correct=counted["correct"], images=counted["images"])


def number_of(value: object) -> float:
    """A figure of a JSON; NaN where there is none, which leaves a gap in a curve."""
    return float(value) if isinstance(value, int | float) else float("nan")


def _column(rounds: list[dict], name: str) -> list[float]:
    return [number_of(line.get(name)) for line in rounds]


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if value == value]  # NaN is not equal to itself


def _median(values: Sequence[float]) -> float:
    known = sorted(_known(values))
    return known[len(known) // 2]


def _smoothed(rounds: list[dict]) -> bool:
    return len(rounds) >= 3 * charts.SMOOTHED
