"""What a search found, for results, files and terminals: every trial at every rung, with what it cost."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.defend.searching import OWN, Rung, Searched, describe
from pipeline.fields import flag
from stages.evaluation.accuracy import Accuracy
from stages.report.words import interval

Row = dict[str, Any]
FATES = ("kept", "ties", "stopped", "failed")
COLUMNS = 14  # characters of a setting's column on a terminal, at most


def search_json(searched: Searched) -> dict[str, Any]:
    """A search as results.json holds it: a trial with its last verdict, and the rungs on its way there."""
    gained = searched.gained
    return {
        "trials": [_trial_json(searched, number) for number in range(len(searched.trials))],
        "chosen": searched.chosen,
        "ties": list(searched.ties),
        "gained": gained and gained.as_json(),
        "images": next(iter(searched.rungs[0].verdicts.values())).robust.images,
        # Left out once it is not known any more, so that what search.json says of it stays.
        **({"shared": searched.shared.as_json()} if searched.shared else {}),
    }


def _trial_json(searched: Searched, number: int) -> dict[str, object]:
    trial, passed = searched.trials[number], _passed(searched, number)
    last, error = passed[-1][1].metrics, passed[-1][1].metrics.get("error")
    return {
        "trial": number,
        "settings": dict(trial.settings),
        "rounds": last["rounds"],
        "clean": None if error else last["clean"],
        "robust": None if error else last["robust"],
        "error": error,
        "cost": last["cost"],
        "rungs": [
            {
                "rounds": rung.rounds,
                "robust": receipt.metrics["robust"]["value"],
                "decision": _fate(searched, rung, number),
            }
            for rung, receipt in passed
            if not receipt.metrics.get("error")
        ],
    }


def _passed(searched: Searched, number: int) -> list[tuple[Rung, Artifact]]:
    """The rungs at which a trial was judged."""
    return [(rung, rung.receipts[number]) for rung in searched.rungs if number in rung.receipts]


def _fate(searched: Searched, rung: Rung, number: int) -> str:
    """What became of a trial at a rung, in a word."""
    if rung is searched.rungs[-1] and number not in rung.decision.failed:
        return "chosen" if number == searched.chosen else "tie" if number in searched.ties else "worse"
    fate = next(fate for fate in FATES if number in getattr(rung.decision, fate))
    return "tie" if fate == "ties" else fate


def rows(searched: Searched) -> Iterator[Row]:
    """A row a trial and rung; costs are sums from the trial's first round on."""
    for trial in searched.trials:
        for rung, receipt in _passed(searched, trial.number):
            found = receipt.metrics
            yield {
                "trial": trial.number,
                **{flag(name): value for name, value in trial.settings.items()},
                "rounds": rung.rounds,
                **_accuracy_columns("robust", found["robust"]),
                **_accuracy_columns("clean", found["clean"]),
                "images": found["robust"]["images"],
                "decision": _fate(searched, rung, trial.number),
                **{name: found["cost"][name] for name in ("attack_steps", "updates", "seconds", "shards", "bytes")},
                "error": found.get("error", ""),
                "verdict": receipt.fingerprint,
            }


def _accuracy_columns(name: str, found: Mapping) -> Row:
    low, high = found["interval"]
    return {name: found["value"], f"{name}_low": low, f"{name}_high": high}


def search_text(searched: Searched) -> str:
    """What the search chose, in a few lines."""
    trial, verdict = searched.trials[searched.chosen], searched.rungs[-1].verdicts[searched.chosen]
    lines = [f"search: trial {trial.number} ({trial}), {verdict.robust} after {searched.rungs[-1].rounds} rounds"]
    if searched.ties:
        ties = ", ".join(map(str, searched.ties))
        lines.append(
            f"not told apart from it on {verdict.robust.images} images: trial{'s' * (len(searched.ties) > 1)} {ties}"
        )
    if searched.gained:
        lines.append(f"against the recipe as it stands (trial {OWN}): {searched.gained}")
    if searched.shared:
        lines.append(str(searched.shared))
    return "\n".join(lines)


def table_of_trials(searched: Searched) -> str:
    """Every trial, the best first: its settings, how far it came, and the judge's verdicts there."""
    names = list(searched.trials[0].settings)
    heads = [flag(name).rpartition(".")[2][:COLUMNS] for name in names]
    order = [*dict.fromkeys(number for rung in reversed(searched.rungs) for number in _order(rung))]
    lines = [["trial", *heads, "rounds", "robust", "clean", "seconds", ""]]
    for number in order:
        trial, (rung, receipt) = searched.trials[number], _passed(searched, number)[-1]
        found, values = receipt.metrics, [_cell(trial.settings[name]) for name in names]
        robust, clean = (_percent(found[name]) for name in ("robust", "clean"))
        fate = _fate(searched, rung, number)
        lines.append([str(number), *values, str(rung.rounds), robust, clean, f"{found['cost']['seconds']:,.0f}", fate])
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    table = ["".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
    told = [f"after {rung.rounds} rounds: {describe(rung.decision)}" for rung in searched.rungs[:-1]]
    images = next(iter(searched.rungs[0].verdicts.values())).robust.images
    return "\n".join([*table, "", f"percent of {images} hold-out images, with 95 % interval", *told])


def _order(rung: Rung) -> tuple[int, ...]:
    decision = rung.decision
    return (*decision.kept, *decision.ties, *decision.stopped, *decision.failed)


def _percent(found: Mapping) -> str:
    accuracy = Accuracy(correct=found["correct"], images=found["images"])
    return f"{100 * accuracy.value:.1f} {interval(accuracy)}"


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
