"""The short ablation that decides the defaults of the presets: one change at a time, by the judge.

    python tests/benchmarks/ablation.py --rounds 300
    python tests/benchmarks/ablation.py --preset cifar10-linf --rounds 60 --seeds 0 --variants "residual output"

Every variant makes as many updates as the preset and is judged after the last, on the hold-out alone. Each run is
written down as it ends, and the same command goes on from there. One process, one thread.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.artifacts import provenance
from pipeline.presets import PRESETS
from pipeline.recipe import Recipe
from stages.data.datasets import ImageData, load_data
from stages.evaluation.accuracy import QUANTILE, Accuracy
from stages.evaluation.judge import JudgeConfig
from stages.fingerprint import canonical, fingerprint
from stages.nets.architectures import ClassifierConfig, build_classifier
from stages.storage import Storage
from stages.training.base_classifier import train_classifier
from stages.training.rounds import judge_on_holdout, run_serially
from stages.training.schedule import Schedule
from stages.training.setup import Setup, load_trained

RESULTS = Path(__file__).parent / "results"
# What of a preset is made smaller for one CPU core, and the paper's objective to start from, whatever the preset has.
SMALLER: dict[str, dict[str, object]] = {
    "digits": {},
    "cifar10-linf": {
        "data.train_images": 8000,
        "classifier.architecture": "resnet18-narrow",
        "classifier.epochs": 3,
        "adapter.size": "tiny-half",
        "attack.precision": "float32",
        "attack.batch": 64,
        "train.precision": "float32",
        "train.ema": 0.0,
        "train.learning_rate": 1.5e-3,
        "train.weight_decay": 0.0,
        "train.objective.reconstruction": 1.0,
        "train.objective.kl": 0.0,
        "schedule.cohort_images": 64,
        "schedule.round_cohorts": 1,
        "schedule.batch": 64,
        "augment": False,
    },
}
BASELINE = "the preset"
# Each variant sets fields of the recipe. What the preset has already is left out, so that the list stays whole
# when a default changes.
VARIANTS: dict[str, dict[str, object]] = {
    "2 steps of a quarter of the radius a visit": {
        "schedule.visit_steps": 2,
        "schedule.last_states": 1.0,
        "attack.step_size": 0.05,
    },
    "a step of the whole radius": {"attack.step_size": 0.2},
    "a life of 10 visits": {"schedule.life": 10},
    "every visit from noise, a step of the whole radius": {"schedule.life": 1, "attack.step_size": 0.2},
    "no restarts": {"schedule.restart": 0.0},
    "10 % restarts": {"schedule.restart": 0.1},
    "starts without noise": {"attack.start": "none"},
    "the attack raises the margin": {"attack.loss": "margin"},
    "overlap, and so weights older by a round": {"schedule.overlap_rounds": 1},
    "a quarter clean images": {"schedule.clean_states": 0.25},
    "no consistency": {"train.objective.consistency": 0.0},
    "no weight perturbation": {"train.weight_perturbation": 0.0},
    "residual output": {"adapter.output": "residual"},
    "hard clamp": {"adapter.straight_through": False},
    "adapter is given the state's t (paper)": {
        "attack.steps": 40,  # t is 1 .. T
        "attack.conditioning": "state",
        "train.conditioning": "state",
    },
    "no reconstruction": {"train.objective.reconstruction": 0.0},
    "KL 3 instead of reconstruction": {"train.objective.reconstruction": 0.0, "train.objective.kl": 3.0},
    "KL 3, residual output": {
        "train.objective.reconstruction": 0.0,
        "train.objective.kl": 3.0,
        "adapter.output": "residual",
    },
    "moving average of the weights (0.98)": {"train.ema": 0.98},
    "learning rate 3.5e-3": {"train.learning_rate": 3.5e-3},
    "learning rate 1.05e-2": {"train.learning_rate": 1.05e-2},
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A variant under a seed."""

    variant: str
    recipe: Recipe

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.recipe.seed}"


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    base = starting_point(arguments)
    data = load_data(base.data)
    found = read(arguments.results, base)
    trials = plan(base, arguments.seeds, arguments.variants or list(VARIANTS), images=len(data.train))
    for number, trial in enumerate(trials, 1):
        if str(trial) not in found:
            found[str(trial)] = measure(trial, data)
            write(arguments.results, base, found)
        run = found[str(trial)]
        print(f"{number}/{len(trials)} {trial}: {Accuracy.from_mask(mask_of(run))}, {run['seconds']} s", flush=True)
    print(f"\n{table([found[str(trial)] for trial in trials])}")


def parse() -> argparse.Namespace:
    summary, *_ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", choices=SMALLER, default="digits", help="cifar10-linf is made smaller for one core")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="beside the preset; unset: all", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the preset; all make its updates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds, pooled in the table")
    parser.add_argument("--holdout", type=int, default=400, help="images to judge on; more than the preset has")
    parser.add_argument("--results", type=Path, help="JSON to write, and to go on from; unset: results/ beside this")
    arguments = parser.parse_args()
    arguments.results = arguments.results or RESULTS / f"ablation-{arguments.preset}.json"
    return arguments


def starting_point(arguments: argparse.Namespace) -> Recipe:
    """The preset at the length asked for, with a larger hold-out and one verdict at the end."""
    recipe = changed(PRESETS[arguments.preset](), SMALLER[arguments.preset])
    # The loop's own verdict, which is not used here, is kept cheap: one image, once.
    return replace(
        recipe,
        data=replace(recipe.data, holdout_images=arguments.holdout),
        schedule=replace(recipe.schedule, rounds=arguments.rounds),
        judge=JudgeConfig(images=1, every=arguments.rounds),
        checkpoint_rounds=arguments.rounds,
    )


def plan(base: Recipe, seeds: Sequence[int], variants: Sequence[str], *, images: int) -> list[Trial]:
    """All trials, one seed after the other, so that an early end leaves every variant with the first seed."""
    recipes = {BASELINE: base}
    for name in variants:
        recipe = with_updates_of(base, changed(base, VARIANTS[name]), images=images)
        if recipe != base:
            recipes[name] = recipe
    return [
        Trial(variant=name, recipe=replace(recipe, seed=seed)) for seed in seeds for name, recipe in recipes.items()
    ]


def changed(config: Any, changes: dict[str, object]) -> Any:
    """A config with the fields at dotted paths set."""
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        config = replace(config, **{name: changed(getattr(config, name), {rest: value}) if rest else value})
    return config


def with_updates_of(base: Recipe, recipe: Recipe, *, images: int) -> Recipe:
    """The recipe with the number of rounds that comes nearest to the base's updates."""
    updates = schedule_of(base, images).updates
    rounds = max(1, round(updates / schedule_of(recipe, images).updates_per_round))
    schedule, judge = replace(recipe.schedule, rounds=rounds), replace(recipe.judge, every=rounds)
    return replace(recipe, schedule=schedule, judge=judge, checkpoint_rounds=rounds)


def schedule_of(recipe: Recipe, images: int) -> Schedule:
    return Schedule(recipe.schedule, images=images, seed=recipe.seed)


def measure(trial: Trial, data: ImageData) -> dict[str, Any]:
    """Train one trial and judge it; times are seconds of CPU time, since a shared machine stretches the others.

    ``robust`` has a 1 for each image of the hold-out that withstood the judge twice, through the clamp's true
    gradient and through the straight-through one: a hard clamp may hide from either, and must not win by that.
    """
    recipe, schedule = trial.recipe, schedule_of(trial.recipe, len(data.train))
    with tempfile.TemporaryDirectory() as folder:
        setup = make_setup(recipe, data, Path(folder))
        began = time.process_time()
        run_serially(setup)
        seconds = time.process_time() - began
        weights, _ = setup.journal.best_weights()
        robust = load_trained(setup.build(), weights)
    whole = replace(setup, config=replace(setup.config, judge=JudgeConfig(images=None)))
    verdicts = []
    for straight_through in (True, False):
        robust.straight_through = straight_through
        verdicts.append(judge_on_holdout(robust, whole))
    return {
        "variant": trial.variant,
        "seed": recipe.seed,
        "robust": "".join(str(int(value)) for value in verdicts[0].mask & verdicts[1].mask),
        "clean": verdicts[0].clean.as_json(),
        "updates": schedule.updates,
        "attack_steps": schedule.attack_steps,
        "seconds": round(seconds, 1),
        "changes": VARIANTS.get(trial.variant, {}),
        "provenance": provenance("cpu", seconds),
    }


def make_setup(recipe: Recipe, data: ImageData, folder: Path) -> Setup:
    """The loop of a recipe, with a classifier that was trained under the recipe's seed."""
    return Setup(
        config=recipe.loop(),
        train=data.train,
        holdout=data.holdout,
        classifier=trained_classifier(recipe.classifier, data, recipe.seed),
        classifier_fingerprint=fingerprint("classifier", 1, config=recipe.classifier, seed=recipe.seed),
        root=Storage.at(folder),
        name="run",
    )


@cache
def trained_classifier(config: ClassifierConfig, data: ImageData, seed: int) -> nn.Module:
    def build() -> nn.Module:
        shape = {"channels": data.channels, "size": data.size, "classes": len(data.classes)}
        return build_classifier(config, **shape, mean=data.mean, std=data.std)

    classifier = build()
    classifier.load_state_dict(
        train_classifier(config, data.available, seed=seed, build=build, progress=lambda line: None)
    )
    return classifier.eval()


def read(path: Path, base: Recipe) -> dict[str, dict[str, Any]]:
    """The runs of an earlier call, by name. Ends the program where they started from another recipe."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if content["recipe"] != canonical(base):
        sys.exit(f"{path} started from another recipe (preset, rounds or hold-out); name another file with --results")
    return content["runs"]


def write(path: Path, base: Recipe, runs: dict[str, dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    content = {"command": shlex.join(["python", *sys.argv]), "recipe": canonical(base), "runs": runs}
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def table(runs: list[dict[str, Any]]) -> str:
    """The result in Markdown: the judge's accuracy over all seeds, and the paired difference to the preset."""
    base = masks(runs, BASELINE)
    lines = [
        "| variant | judge on the hold-out | by seed | against the preset | clean | updates | attack steps | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(run["variant"] for run in runs):
        mine, mask = [run for run in runs if run["variant"] == name], masks(runs, name)
        seeds = " ".join(f"{100 * mask_of(run).mean():.1f}" for run in mine)
        clean = 100 * float(np.mean([run["clean"]["value"] for run in mine]))
        seconds = float(np.mean([run["seconds"] for run in mine]))
        lines.append(
            f"| {name} | {Accuracy.from_mask(mask)} | {seeds} | {difference(mask, base)} | {clean:.1f} % "
            f"| {mine[0]['updates']} | {mine[0]['attack_steps']:,} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def mask_of(run: dict[str, Any]) -> np.ndarray:
    return np.array([digit == "1" for digit in run["robust"]])


def masks(runs: list[dict[str, Any]], variant: str) -> np.ndarray:
    return np.concatenate([mask_of(run) for run in runs if run["variant"] == variant])


def difference(mask: np.ndarray, base: np.ndarray) -> str:
    """The change in points with its 95 % interval over images, paired; the seeds' own spread comes on top."""
    change = 100 * (mask.astype(float) - base)
    return f"{change.mean():+.1f} ± {QUANTILE * change.std() / len(change) ** 0.5:.1f}"


if __name__ == "__main__":
    main()
