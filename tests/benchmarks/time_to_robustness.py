"""Robust accuracy against CPU time, by method: the pipeline's serial loop, and rivals that keep everything in memory.

    python -m tests.benchmarks time-to-robustness --preset digits --budgets 60 --seeds 0 1 2 3 4

Every method trains the preset's networks from the same first weights, on the same images, with one thread, for as
many updates as fit into the budget (seconds of CPU time with everything that a loop does; how long an update takes is
tried first, since the learning rate follows the whole length). The pipeline on Ray has one generator and one train
worker on two cores, and its budget is wall time, from the first process that starts to the last that has ended. Then
the judge attacks all test images, and AutoAttack some of them where --autoattack says so. Each result is written down
as it is known, and the same command goes on.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 - a run's first ledger would load it, in the midst of a trial
import torch
from ablation import changed, make_setup
from generation import TWO_CORES
from matplotlib.figure import Figure
from rivals import RIVALS, InMemory, Rival
from torch import Tensor, nn

from cluster.session import session
from pipeline.artifacts import provenance
from pipeline.defend.loop import run_loop
from pipeline.presets import PRESETS
from pipeline.recipe import Recipe
from stages import numerics
from stages.data.datasets import ImageData, load_data
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.autoattack import AutoAttackConfig, attack_chunk
from stages.evaluation.judge import JudgeConfig, judge
from stages.training.rounds import run_serially
from stages.training.setup import Setup, load_trained

RESULTS = Path(__file__).parent / "results"
PIPELINE, ON_RAY = "the pipeline", "the pipeline on Ray, two workers"
TUNING = 400  # images of the hold-out
# Updates of a trial that says how long one takes. Those in its middle count: half of them are in its second half, in
# which weights are perturbed. MARGIN are left out at either end.
TRIED, MARGIN = 40, 8
Trained = tuple[dict[str, Tensor], int, float]  # weights, updates, seconds of its budget's kind


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    config = PRESETS[arguments.preset]().data
    data = load_data(replace(config, holdout_images=TUNING) if arguments.tuning else config)
    if arguments.tuning:
        data = replace(data, test=data.holdout)
    found = read(arguments.results)
    for seed in arguments.seeds:
        for budget in arguments.budgets:
            for method in arguments.methods:
                for what in arguments.what:
                    name = f"{method}, {what}, {budget:g} s, seed {seed}" + "".join(
                        f", {each}" for each in arguments.set
                    )
                    entry = found.setdefault(name, {"method": method, "what": what, "budget": budget, "seed": seed})
                    with tempfile.TemporaryDirectory() as folder:
                        measure(name, entry, arguments, data, Path(folder))
                    write(arguments.results, found)
                    print(f"{name}: {text(entry)}", flush=True)
    print(f"\n{table(list(found.values()))}")
    draw(list(found.values()), arguments.results.with_suffix(".png"), arguments.preset)


def parse() -> argparse.Namespace:
    methods = [PIPELINE, ON_RAY, *RIVALS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="digits", choices=PRESETS)
    parser.add_argument("--methods", nargs="+", default=[PIPELINE, *RIVALS], choices=methods, metavar="NAME")
    parser.add_argument("--what", nargs="+", default=["adapter"], choices=["adapter", "classifier", "both"])
    parser.add_argument(
        "--budgets", nargs="+", type=float, default=[60.0], help="seconds of CPU time; on Ray of a clock"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--autoattack", type=int, default=0, help="test images for AutoAttack, the same for all")
    parser.add_argument("--weights", type=Path, help="folder for the trained weights, which AutoAttack can need later")
    parser.add_argument("--results", type=Path, help="JSON to write, and to go on from; unset: results/ beside this")
    parser.add_argument("--tuning", action="store_true", help="judge on a hold-out of 400 images, not on test images")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of a rival, or of the recipe, for tuning"
    )
    arguments = parser.parse_args()
    if arguments.set and not (arguments.tuning and arguments.results):
        parser.error("--set is for tuning: name --tuning, and --results of its own")
    arguments.results = arguments.results or RESULTS / f"time-to-robustness-{arguments.preset}.json"
    return arguments


def measure(name: str, entry: dict[str, Any], arguments: argparse.Namespace, data: ImageData, folder: Path) -> None:
    """Train what is not trained, judge it, and attack it where that was asked for and not done."""
    recipe = PRESETS[arguments.preset]()
    recipe = replace(recipe, seed=entry["seed"], train=replace(recipe.train, what=entry["what"]))
    settings = {name: json.loads(value) for name, value in (each.split("=") for each in arguments.set)}
    if entry["method"] in (PIPELINE, ON_RAY):
        recipe, settings = changed(recipe, settings), {}
    place = arguments.weights and arguments.weights / f"{arguments.preset}, {name}.pt"
    setup = setup_of(recipe, data, folder, rounds=1)
    weights = torch.load(place, weights_only=True) if place and place.exists() else None
    if "judge" not in entry or (entry.get("autoattack", {}).get("images", 0) < arguments.autoattack and not weights):
        weights, updates, seconds = train(entry["method"], recipe, data, folder, entry["budget"], settings)
        if place:
            place.parent.mkdir(parents=True, exist_ok=True)
            torch.save(weights, place)
        robust = load_trained(setup.build(), weights)
        entry |= {"updates": updates, "seconds": round(seconds, 1), **judged(robust, recipe, data)}
        entry["provenance"] = provenance("cpu", seconds)
    if entry.get("autoattack", {}).get("images", 0) < arguments.autoattack:
        assert weights is not None
        robust = load_trained(setup.build(), weights)
        entry["autoattack"] = autoattack(robust, recipe, data, arguments.autoattack, entry.get("autoattack"))


def train(
    method: str, recipe: Recipe, data: ImageData, folder: Path, budget: float, settings: dict[str, Any]
) -> Trained:
    """``settings`` are a rival's; the pipeline's are in its recipe."""
    if method == PIPELINE:
        return by_pipeline(recipe, data, folder, budget)
    if method == ON_RAY:
        return on_ray(recipe, data, folder, budget)
    return in_memory(replace(RIVALS[method], **settings), setup_of(recipe, data, folder, rounds=1), budget)


def setup_of(recipe: Recipe, data: ImageData, folder: Path, *, rounds: int) -> Setup:
    """The loop without a verdict on the way: every method ships its last weights."""
    schedule, judge = replace(recipe.schedule, rounds=rounds), JudgeConfig(images=1, every=rounds)
    setup = make_setup(replace(recipe, schedule=schedule, judge=judge), data, folder)
    return replace(setup, keep_versions=False)


def by_pipeline(recipe: Recipe, data: ImageData, folder: Path, budget: float) -> Trained:
    """The serial loop, with its store, for as many rounds as the budget holds."""

    def timed(setup: Setup) -> list[float]:
        """CPU time at the start and after each round but the last, in which the judge is asked once."""
        times = [time.process_time()]
        run_serially(setup, report=lambda line: times.append(time.process_time()))
        return times[:-1]

    times = timed(setup_of(recipe, data, folder / "try", rounds=TRIED))
    cost = (times[TRIED - MARGIN] - times[MARGIN]) / (TRIED - 2 * MARGIN)
    setup = setup_of(recipe, data, folder / "run", rounds=max(2, round(budget / cost)))
    times = timed(setup)
    seconds = (times[-1] - times[0]) * len(times) / (len(times) - 1)
    return setup.journal.best_weights()[0], setup.schedule.updates, seconds


def on_ray(recipe: Recipe, data: ImageData, folder: Path, budget: float) -> Trained:
    """The loop on Ray, for as many rounds as the budget holds beside the start of its processes."""

    def timed(setup: Setup) -> list[float]:
        """The clock at the start, after each round, and at the end."""
        times = [time.perf_counter()]
        run_loop(setup, TWO_CORES, progress=lambda line: times.append(time.perf_counter()))
        return [*times, time.perf_counter()]

    with session(cpus=2):
        tried = timed(setup_of(recipe, data, folder / "try", rounds=TRIED))
        cost = (tried[TRIED - MARGIN] - tried[MARGIN]) / (TRIED - 2 * MARGIN)
        around = tried[-1] - tried[0] - TRIED * cost
        setup = setup_of(recipe, data, folder / "run", rounds=max(2, round((budget - around) / cost)))
        times = timed(setup)
    return setup.journal.best_weights()[0], setup.schedule.updates, times[-1] - times[0]


def in_memory(rival: Rival, setup: Setup, budget: float) -> Trained:
    """A rival, for as many updates as the budget holds."""
    tried, times = InMemory(setup, rival, updates=TRIED), []
    for _ in range(TRIED):
        times.append(time.process_time())
        tried.update()
    cost = (times[TRIED - MARGIN] - times[MARGIN]) / (TRIED - 2 * MARGIN)
    updates = max(1, round(budget / cost))
    loop, began = InMemory(setup, rival, updates=updates), time.process_time()
    for _ in range(updates):
        loop.update()
    seconds = time.process_time() - began
    return loop.learner.shipped(), updates, seconds


def judged(robust: nn.Module, recipe: Recipe, data: ImageData) -> dict[str, Any]:
    test, began = data.test, time.process_time()
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    verdict = judge(robust, images, labels, test.rows, recipe.threat, JudgeConfig(images=1000))
    return {
        "clean": verdict.clean.as_json(),
        "judge": verdict.robust.as_json(),
        "judging": round(time.process_time() - began, 1),
    }


def autoattack(
    robust: nn.Module, recipe: Recipe, data: ImageData, count: int, done: dict[str, Any] | None
) -> dict[str, Any]:
    """Of the first images, of which those that were attacked before are not attacked again."""
    done = done or {"correct": 0, "images": 0, "seconds": 0.0}
    new = slice(done["images"], count)
    images, labels = torch.from_numpy(data.test.images[new]), torch.from_numpy(data.test.labels[new])
    began = time.process_time()
    with numerics.verdict(threads=1):
        verdict = attack_chunk(robust, images, labels, recipe.threat, config=AutoAttackConfig(images=len(images)))
    found = Accuracy(correct=done["correct"] + int(verdict.robust.sum()), images=done["images"] + len(images))
    return {**found.as_json(), "seconds": round(done["seconds"] + time.process_time() - began, 1)}


def read(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, found: dict[str, dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(path)


def text(entry: dict[str, Any]) -> str:
    parts = [f"judge {accuracy(entry['judge'])}", f"clean {100 * entry['clean']['value']:.1f} %"]
    if "autoattack" in entry:
        parts.append(f"AutoAttack {accuracy(entry['autoattack'])}")
    return ", ".join([*parts, f"{entry['updates']} updates, {entry['seconds']} s"])


def accuracy(figure: dict[str, Any]) -> Accuracy:
    return Accuracy(correct=figure["correct"], images=figure["images"])


def table(runs: list[dict[str, Any]]) -> str:
    """The results in Markdown, medians over seeds."""
    lines = [
        "| method | trained | seconds | updates | clean | judge, median | by seed | AutoAttack, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds = {(run["method"], run["what"], run["budget"]): None for run in runs}
    for method, what, budget in kinds:
        mine = [run for run in runs if (run["method"], run["what"], run["budget"]) == (method, what, budget)]
        judges, last = values(mine, "judge"), values([run for run in mine if "autoattack" in run], "autoattack")
        count = {run["autoattack"]["images"] for run in mine if "autoattack" in run}
        said = f"{statistics.median(last):.1f} of {'/'.join(map(str, count))}, {len(last)} seeds" if last else ""
        seconds = statistics.median(run["seconds"] for run in mine)
        lines.append(
            f"| {method} | {what} | {seconds:.0f} | {statistics.median(run['updates'] for run in mine):.0f} "
            f"| {statistics.median(values(mine, 'clean')):.1f} | {statistics.median(judges):.1f} "
            f"| {' '.join(f'{value:.1f}' for value in judges)} | {said} |"
        )
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], place: Path, preset: str) -> None:
    """A line a method over CPU time, through the medians of its seeds, which are points."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    kinds = dict.fromkeys((run["method"], run["what"]) for run in runs)
    for (method, what), marker in zip(kinds, itertools.cycle("osD^vP*X"), strict=False):
        mine = [run for run in runs if (run["method"], run["what"]) == (method, what)]
        budgets = sorted({run["budget"] for run in mine})
        medians = [
            statistics.median(values([run for run in mine if run["budget"] == each], "judge")) for each in budgets
        ]
        width = 3 if method == PIPELINE else 1
        label = method if what == "adapter" else f"{method} ({what})"
        (line,) = axes.plot(budgets, medians, marker=marker, label=label, linewidth=width)
        axes.scatter([run["budget"] for run in mine], values(mine, "judge"), s=8, color=line.get_color(), alpha=0.5)
    axes.set(xlabel="CPU seconds of training, one thread", ylabel="robust accuracy under the judge, %", title=preset)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(place, dpi=120)


def values(runs: list[dict[str, Any]], name: str) -> list[float]:
    return [100 * run[name]["value"] for run in runs]


if __name__ == "__main__":
    main()
