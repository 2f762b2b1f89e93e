"""How robust? The preset, or its classifier alone, trained by the product's own loop for so long, then attacked."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from stages import numerics
from stages.evaluation.accuracy import Accuracy, clean_mask
from stages.evaluation.autoattack import attack_chunk
from stages.evaluation.judge import JudgeConfig, judge
from stages.evaluation.verdict import ChunkVerdict
from stages.randomness import permutation
from stages.training.base_classifier import train_classifier
from stages.training.rounds import run_serially
from stages.training.setup import Setup, load_trained

from .bench import Bench

EVALUATION = 200.0  # seconds for AutoAttack and the judge, estimated for an H100 from 9 TFLOP an image in float32
TRIED = 6  # rounds that say how long one takes
JUDGED = 8  # times that the judge is asked while training

Keep = Callable[[dict[str, Any]], None]


class OutOfTimeError(RuntimeError):
    """The part's time is over, between two attacks of AutoAttack."""


def robust(bench: Bench, deadline: float, keep: Keep, *, what: Literal["adapter", "classifier"]) -> dict[str, Any]:
    """Train, then attack; what is known is kept on the way."""
    found: dict[str, Any] = {"trained": what, "data": bench.data.name, "threat": vars(bench.recipe.threat)}
    classifier, found["classifier"] = trained_classifier(bench)
    keep(found)
    seconds = min(bench.budget, deadline - time.perf_counter() - (0 if bench.tiny else EVALUATION))
    setup, found["training"] = trained(bench, classifier, what, seconds)
    keep(found)
    weights, version = setup.journal.best_weights()
    model = load_trained(setup.build(), weights)
    found["shipped"] = version
    with numerics.verdict(threads=1):
        found["judge"] = judged(bench, model)
        keep(found)
        attacked(bench, model, deadline, found, keep)
    found["table"] = table(found)
    return found


def trained_classifier(bench: Bench) -> tuple[nn.Module, dict[str, Any]]:
    """The classifier as a run trains it on clean images; its accuracy on the test images, and the time it took."""
    recipe, data, began = bench.recipe, bench.data, time.perf_counter()
    state = train_classifier(
        recipe.classifier,
        data.available,
        seed=recipe.seed,
        build=lambda: bench.classifier(recipe),
        device=str(bench.device),
    )
    seconds = time.perf_counter() - began
    classifier = bench.classifier(recipe)
    classifier.load_state_dict(state)
    images, labels = torch.from_numpy(data.test.images), torch.from_numpy(data.test.labels)
    with numerics.verdict(threads=1):
        clean = Accuracy.from_mask(clean_mask(classifier.to(bench.device), images, labels))
    return classifier.cpu(), {"seconds": seconds, "epochs": recipe.classifier.epochs, "clean": clean.as_json()}


def trained(bench: Bench, classifier: nn.Module, what: str, seconds: float) -> tuple[Setup, dict[str, Any]]:
    """The loop for about so many seconds: as many rounds as a short try says, since the learning rate follows them."""
    recipe, began = bench.recipe, time.perf_counter()
    train = replace(recipe.train, what=what)

    def setup_of(name: str, rounds: int) -> Setup:
        schedule = replace(recipe.schedule, rounds=rounds)
        judge = replace(recipe.judge, every=max(TRIED, rounds // JUDGED))
        return bench.setup(recipe, name, classifier, schedule=schedule, train=train, judge=judge)

    tried: list[dict] = []
    run_serially(setup_of(f"try-{what}", TRIED), report=tried.append, indexed=False)
    plain = [line["seconds"] for line in tried[1:] if "judge" not in line]
    asked = [line["seconds"] for line in tried if "judge" in line]
    left = seconds - (time.perf_counter() - began) - JUDGED * max(0.0, float(np.median(asked) - np.median(plain)))
    rounds = max(JUDGED, int(0.97 * left / float(np.median(plain))))
    ends, lines = began + seconds, list[dict]()
    setup = setup_of(what, rounds)
    run_serially(setup, stopped=lambda: time.perf_counter() > ends + 10, report=lines.append, indexed=False)
    return setup, {
        "seconds": time.perf_counter() - began,
        "rounds": len(lines),
        "planned_rounds": rounds,
        "updates": lines[-1]["updates"],
        "epochs": len(lines) * setup.schedule.examples / len(setup.train),
        "round_seconds": float(np.median([line["seconds"] for line in lines])),
        "waiting": float(np.median([line["waiting"] for line in lines])),
        "attack_steps_per_second": float(np.median([line["attack_steps_per_second"] for line in lines])),
        "judgements": [{"round": line["round"], **line["judge"]} for line in lines if "judge" in line],
    }


def judged(bench: Bench, model: nn.Module) -> dict[str, Any]:
    """The judge's verdict on the test images."""
    test, began = bench.data.test, time.perf_counter()
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    config = JudgeConfig(images=bench.sizes.judged)
    verdict = judge(model, images, labels, test.rows, bench.recipe.threat, config)
    figures = {"clean": verdict.clean.as_json(), "robust": verdict.robust.as_json()}
    return {**figures, "seconds": time.perf_counter() - began}


class Kept(dict[tuple[str, ...], ChunkVerdict]):
    """Writes down what each attack left, and ends when the time is over."""

    def __init__(self, note: Callable[[ChunkVerdict], None], deadline: float) -> None:
        super().__init__()
        self.note, self.deadline = note, deadline

    def __setitem__(self, attacks: tuple[str, ...], verdict: ChunkVerdict) -> None:
        super().__setitem__(attacks, verdict)
        self.note(verdict)
        if time.perf_counter() > self.deadline:
            raise OutOfTimeError


def attacked(bench: Bench, model: nn.Module, deadline: float, found: dict[str, Any], keep: Keep) -> None:
    """AutoAttack standard on the first test images of the order of every evaluation, together."""
    test, count = bench.data.test, bench.sizes.attacked
    chosen = test.take(permutation(len(test), "evaluation")[:count])
    images, labels = torch.from_numpy(chosen.images), torch.from_numpy(chosen.labels)
    config = replace(bench.recipe.evaluation, images=count, chunk=count, batch=count)

    def note(verdict: ChunkVerdict) -> None:
        found["autoattack"] = {
            "clean": Accuracy.from_mask(verdict.clean).as_json(),
            "robust": Accuracy.from_mask(verdict.robust).as_json(),
            "attack_seconds": verdict.seconds,
            "flags": list(verdict.flags),
            "complete": False,
        }
        keep(found)

    try:
        note(attack_chunk(model, images, labels, bench.recipe.threat, config=config, kept=Kept(note, deadline)))
        found["autoattack"]["complete"] = True
    except OutOfTimeError:
        print("no time for the attacks that are left", flush=True)


def table(found: dict[str, Any]) -> list[str]:
    training, attack = found["training"], found["autoattack"]

    def said(counts: dict) -> str:
        return str(Accuracy(counts["correct"], counts["images"]))

    attacks = "standard" if attack["complete"] else f"({', '.join(attack['attack_seconds'])} alone)"
    epochs = f"{training['epochs']:.1f} epochs of {found['data']}"
    return [
        f"{found['trained']} trained for {training['seconds']:.0f} s, {epochs}",
        f"  undefended, clean   {said(found['classifier']['clean'])}",
        f"  clean               {said(found['judge']['clean'])}",
        f"  judge               {said(found['judge']['robust'])}",
        f"  AutoAttack {attacks}  {said(attack['robust'])}, its clean {said(attack['clean'])}",
    ]
