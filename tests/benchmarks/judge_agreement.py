"""Does the judge rank as AutoAttack does? Both on the same images of the hold-out, for models of several kinds.

    python tests/benchmarks/judge_agreement.py --weights ~/judged-models

Trains what is not below --weights yet, on the digits, with one thread. Each model's verdicts are written down as they
are known, and the same command goes on from there; the judge is asked anew. Writes results/judge_agreement.json
beside this file.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import changed, make_setup, trained_classifier
from torch import nn

from pipeline.artifacts import provenance
from pipeline.presets import PRESETS
from pipeline.recipe import Recipe
from stages import numerics
from stages.data.datasets import ImageData, load_data
from stages.evaluation.accuracy import Accuracy
from stages.evaluation.autoattack import AutoAttackConfig, attack_chunk
from stages.evaluation.judge import JudgeConfig, judge
from stages.evaluation.pgd import PGDConfig, pgd_mask
from stages.training.rounds import run_serially
from stages.training.setup import load_trained

RESULTS = Path(__file__).parent / "results" / "judge_agreement.json"
HOLDOUT = 400
IMAGES = 200
# Whatever the preset is today: the verdicts below stay those of the same models.
TRAINED: dict[str, object] = {
    "schedule.cohort_images": 128,
    "schedule.batch": 128,
    "schedule.overlap_rounds": 1,
    "train.learning_rate": 4e-3,
}
SMOOTHED: dict[str, object] = {"classifier.label_smoothing": 0.2}
ONE_STEP: dict[str, object] = {"schedule.life": 1, "schedule.visit_steps": 1, "attack.step_size": 0.2}


@dataclass(frozen=True)
class Kind:
    """A kind of model: the digits recipe with some changes; with 0 rounds its classifier alone."""

    changes: dict[str, object] = field(default_factory=dict)
    rounds: int = 500

    def recipe(self) -> Recipe:
        recipe = PRESETS["digits"]()
        recipe = changed(replace(recipe, data=replace(recipe.data, holdout_images=HOLDOUT)), TRAINED | self.changes)
        judge = JudgeConfig(images=1, every=max(1, self.rounds))
        return replace(recipe, schedule=replace(recipe.schedule, rounds=self.rounds), judge=judge)


KINDS = {
    "undefended": Kind(rounds=0),
    "undefended, smoothed labels": Kind(SMOOTHED, rounds=0),
    "adversarially trained": Kind({"train.what": "classifier"}),
    "single steps (N-FGSM)": Kind({"train.what": "classifier", **ONE_STEP}),
    "single steps from the image": Kind({"train.what": "classifier", **ONE_STEP, "attack.start": "none"}),
    "adapter": Kind(),
    "adapter, smoothed labels": Kind(SMOOTHED),
}


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    for name, kind in KINDS.items():
        recipe = kind.recipe()
        data = load_data(recipe.data)
        model = trained(name, recipe, data, arguments.weights)
        entry = found.setdefault(name, {})
        if "autoattack" not in entry:
            entry |= {"autoattack": digits(autoattack(model, recipe, data)), "provenance": provenance("cpu", 0.0)}
        entry["judges"] = {}
        for label, ask in JUDGES.items():
            began = time.process_time()
            mask = ask(model, recipe, data)
            entry["judges"][label] = {"mask": digits(mask), "seconds": round(time.process_time() - began, 1)}
        RESULTS.write_text(json.dumps({"images": IMAGES, "models": found}, indent=1) + "\n")
        print(row(name, entry), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder for the models' weights")
    return parser.parse_args()


def trained(name: str, recipe: Recipe, data: ImageData, folder: Path) -> nn.Module:
    """The model, from its file where it was trained before."""
    place = folder / f"{name.replace(' ', '-')}.pt"
    setup = make_setup(recipe, data, folder / "runs" / place.stem)
    if not recipe.schedule.rounds:
        return trained_classifier(recipe.classifier, data, recipe.seed)
    if not place.exists():
        run_serially(setup)
        weights, _ = setup.journal.best_weights()
        torch.save(weights, place)
    return load_trained(setup.build(), torch.load(place, weights_only=True)).eval()


def autoattack(model: nn.Module, recipe: Recipe, data: ImageData) -> np.ndarray:
    images, labels = chosen(data)
    with numerics.verdict(threads=1):
        return attack_chunk(model, images, labels, recipe.threat, config=AutoAttackConfig(images=IMAGES)).robust


def chosen(data: ImageData) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(data.holdout.images[:IMAGES]), torch.from_numpy(data.holdout.labels[:IMAGES])


def the_judge(model: nn.Module, recipe: Recipe, data: ImageData) -> np.ndarray:
    images, labels = chosen(data)
    return judge(model, images, labels, data.holdout.rows[:IMAGES], recipe.threat, JudgeConfig(images=None)).mask


def pgd_20(model: nn.Module, recipe: Recipe, data: ImageData) -> np.ndarray:
    images, labels = chosen(data)
    with numerics.verdict(threads=1):
        return pgd_mask(model, images, labels, recipe.threat, config=PGDConfig(), rows=data.holdout.rows[:IMAGES])


JUDGES: dict[str, Callable[[nn.Module, Recipe, ImageData], np.ndarray]] = {"judge": the_judge, "PGD-20": pgd_20}


def digits(mask: np.ndarray) -> str:
    return "".join(str(int(value)) for value in mask)


def row(name: str, entry: dict[str, Any]) -> str:
    """A line of the table: AutoAttack, then each judge with its difference and the images on which they disagree."""
    last = np.array([digit == "1" for digit in entry["autoattack"]])
    cells = [f"| {name} | {Accuracy.from_mask(last)}"]
    for label, verdict in entry["judges"].items():
        mask = np.array([digit == "1" for digit in verdict["mask"]])
        cells.append(
            f"{label} {100 * mask.mean():.1f} ({100 * (mask.mean() - last.mean()):+.1f}; {int((mask != last).sum())} "
            f"images differ) {verdict['seconds']} s"
        )
    return " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
