"""python -m pipeline.status ROOT [--watch]: what goes on below a root, from its files alone.

No Ray is asked, so it says the same of a run that was killed: what its last line of metrics says, and how old that is.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import tyro
from tyro.conf import Positional

from pipeline.artifacts import told
from pipeline.defend.dry_run import duration
from pipeline.exits import DAMAGE, fail
from pipeline.flags import check_flags
from stages.storage import Storage
from stages.training.alarms import alarms_by_kind
from stages.training.journal import Journal

USAGE = "python -m pipeline.status ROOT [--watch]"
PAUSE = 5.0  # seconds from one look to the next
RECENT = 20  # rounds whose times say how long the rest will take


@dataclass(frozen=True, kw_only=True)
class StatusCommand:
    """Runs and searches below a root: how far they are, and how fast."""

    root: Positional[str]
    """The --root of the runs: a directory or a URL."""
    watch: bool = False
    """Look again every five seconds, until Ctrl-C."""


def status(root: Storage) -> str:
    """All runs and searches below a root."""
    parts = [*(_run(root, name) for name in root.names("runs")), *(_search(root, n) for n in root.names("searches"))]
    return "\n\n".join("\n".join(lines) for lines in parts) or f"no run or search lies below {root}"


def _run(root: Storage, name: str) -> Iterator[str]:
    run = root.below(f"runs/{name}")
    recipe, results = told(run, "recipe.json"), told(run, "results.json")
    lines = Journal(run).lines()
    if results:
        robust = results["robust_accuracy"]
        yield f"runs/{name}: finished, {100 * robust['value']:.1f} % of {robust['images']} test images remain robust"
        return
    rounds = recipe["recipe"]["schedule"]["rounds"] if recipe else 0
    if not lines:
        yield f"runs/{name}: begun; no round is trained yet"
        return
    done = lines[-1]["round"] + 1
    stage = "training" if done < rounds else "trained; evaluation and checks"
    yield f"runs/{name}: {stage}, round {done} of {rounds}{_age(run)}"
    yield from (f"  {line}" for line in _training(lines, rounds))


def _training(lines: list[dict], rounds: int) -> Iterator[str]:
    """What the metrics of a training say."""
    last, recent = lines[-1], lines[-RECENT:]
    if judged := _last_judged(lines):
        yield f"{_verdict(judged)} after round {judged['round'] + 1}"
    speed = last["attack_steps_per_second"]
    speed_text = f"{speed:,.0f} attack steps/s a generator, " if speed else ""
    yield f"loss {last['loss']:.3f}, {speed_text}lag {last['lag']} updates, waiting {last['waiting']:.0%} of the time"
    shards, size = sum(len(line["shards"]) for line in lines), sum(line["bytes"] for line in lines)
    yield f"{shards:,} shards, {size / 1e6:,.1f} MB"
    if left := rounds - last["round"] - 1:
        mean = sum(line["seconds"] for line in recent) / len(recent)
        yield f"{duration(left * mean)} of training left, as the last {len(recent)} rounds took {mean:.2g} s each"
    yield from (f"ALARM: {alarm}" for alarm in alarms_by_kind(lines))


def _search(root: Storage, name: str) -> Iterator[str]:
    found = told(root.below(f"searches/{name}"), "search.json")
    if not found:
        yield f"searches/{name}: begun; no trial is there yet"
        return
    trials, asked = found["trials"], found.get("asked", len(found["trials"]))
    if found["finished"]:
        yield f"searches/{name}: finished, trial {found['chosen']} of {len(trials)} was chosen"
    else:
        yield f"searches/{name}: {len(trials)} of {asked} trials known, at the rung of round {found['rung']}"
    for trial in trials:
        yield f"  {trial['name']}: {_trial(root, trial.get('folder'))}"


def _trial(root: Storage, folder: str | None) -> str:
    """The last line of a trial's metrics."""
    lines = Journal(root.below(folder)).lines() if folder else []
    if not lines:
        return "no round is trained yet" if folder else "its verdicts are there"
    judged = _last_judged(lines)
    verdict = f", {_verdict(judged)}" if judged else ""
    return f"round {lines[-1]['round'] + 1}, loss {lines[-1]['loss']:.3f}{verdict}"


def _last_judged(lines: list[dict]) -> dict | None:
    return next((line for line in reversed(lines) if "judge" in line), None)


def _verdict(line: dict) -> str:
    robust = line["judge"]["robust"]
    return f"judge {robust['value']:.1%} of {robust['images']}"


def _age(run: Storage) -> str:
    """How old the last line of metrics is, in words."""
    times = [entry.modified for entry in run.entries("metrics")]
    return f", written {duration((datetime.now(UTC) - max(times)).total_seconds())} ago" if times else ""


def parse(argv: list[str]) -> StatusCommand:
    """The command that the arguments give. Ends with exit code 2 where they make no sense."""
    check_flags(argv)
    return tyro.cli(StatusCommand, prog=USAGE, args=argv)


def main(argv: list[str] | None = None) -> int:
    """The command; 0, 1 where what is there is damaged, or 2 where there is no such root."""
    command = parse(sys.argv[1:] if argv is None else argv)
    try:
        root = Storage.at(command.root)
        if not root.names():
            fail(f"nothing lies below {root}: name the --root of your runs")
        print(status(root))
        while command.watch:
            time.sleep(PAUSE)
            print(f"\n{datetime.now():%H:%M:%S}\n{status(root)}", flush=True)
    except ValueError as error:
        fail(str(error))
    except DAMAGE as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
