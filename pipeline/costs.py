"""--dry-run: each stage, its fingerprint, whether it is built, and what the rest costs.

Bytes and counts follow from the recipe; times come from a short calibration of the real networks on this
machine, and are estimates for as many workers as it has.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from pipeline.artifacts import Store
from pipeline.plan import Plan
from pipeline.search import candidates, search_fingerprint
from stages.nets.classifiers import build_classifier
from stages.rap.attack import attack, draw_start
from stages.threads import cpu_threads
from stages.training.replay import TrainingBatch
from stages.training.rounds import Setup

CALIBRATION_IMAGES = 32
QUICK = 0.05  # seconds an image; below, more images can be timed, whose overhead is shared as in a real batch
# Forward and backward passes of AutoAttack (standard) on an image that survives all of it: APGD-CE 100,
# APGD-T 9 x 100, FAB-T 9 x 100 at about two each, and Square's 5,000 forward passes at a third.
AUTOATTACK_PASSES = 100 + 900 + 1800 + 1700


@dataclass(frozen=True)
class Stage:
    """A line of the dry run."""

    name: str
    fingerprint: str
    state: str
    cost: str


def stages(plan: Plan) -> list[Stage]:
    """The stages of a plan in order, with what they have and what they would cost."""
    recipe, store = plan.recipe, Store(plan.root)
    setup = untrained_setup(plan)
    schedule, step, update = setup.schedule, *calibrate(setup)
    lines = []
    built = plan.external is not None or store.get("classifier", plan.classifier_fingerprint) is not None
    lines.append(Stage("classifier", plan.classifier_fingerprint, _state(built), f"{recipe.classifier.epochs} epochs"))
    trials = len(candidates(recipe)) if recipe.search.trials else 0
    if trials:
        short = replace(setup, config=recipe.loop(rounds=recipe.search.rounds)).schedule
        name = search_fingerprint(setup, recipe)
        cost = f"{trials} trials of up to {short.attack_steps:,} attack steps and {short.updates:,} updates"
        lines.append(Stage("search", name, _state(store.get("search", name) is not None), cost))
    published = setup.versions.fingerprint(schedule.config.rounds)
    rounds = sum(setup.versions.fingerprint(number) is not None for number in range(schedule.config.rounds + 1)) - 1
    state = "built" if published else f"round {max(0, rounds)} of {schedule.config.rounds}"
    size = schedule.config.rounds * schedule.config.examples * predicted_bytes(plan, schedule.steps)
    cost = (
        f"{schedule.attack_steps:,} attack steps, {schedule.updates:,} updates, up to {size / 1e6:,.0f} MB; about "
        f"{duration(schedule.attack_steps * step)} of attack and {duration(schedule.updates * update)} of training"
    )
    pending = "pending on the classifier" if not built else "pending on the search" if trials else "pending on v_0"
    lines.append(Stage("rounds", setup.versions.fingerprint(0) or pending, state, cost))
    images = recipe.evaluation.images
    cost = f"{images} images, {duration(images * AUTOATTACK_PASSES * step)} of attack if every one survives"
    pending = f"pending on v_{schedule.config.rounds}"
    lines.append(Stage("evaluation", pending, "to do", cost))
    rounds, checks = round(recipe.checks.budget * schedule.config.rounds), recipe.checks.size
    cost = f"20 checks on {checks.images} images, {f'4 trainings of {rounds} rounds' if rounds else 'no trainings'}"
    lines.append(Stage("checks", pending, "to do", cost))
    return lines


def describe_costs(plan: Plan) -> str:
    """The dry run as text."""
    found = stages(plan)
    lines = [f"run {plan.run.name} on {plan.data.name}, below {plan.root}", ""]
    for stage in found:
        lines += [f"{stage.name:12} {stage.fingerprint:34} {stage.state}", f"{'':12} {stage.cost}"]
    lines += [
        "",
        "times: one worker with the recipe's threads on this machine's CPU in float32, from a short calibration",
    ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds in a unit that people read.

    >>> duration(45), duration(5_000_000)
    ('45 s', '58 days')
    """
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 3 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def untrained_setup(plan: Plan) -> Setup:
    """The loop's setup with a classifier that has no trained weights: enough to count and to time."""
    with torch.random.fork_rng():
        classifier: nn.Module = plan.external or build_classifier(plan.recipe.classifier, **plan.network)  # pyright: ignore[reportArgumentType]
    return plan.setup(classifier)


def calibrate(setup: Setup) -> tuple[float, float]:
    """Seconds of one attack step on one image, and of one update; large networks are timed on two images."""
    step, update = _calibrate_on(setup, images=2)
    if max(step, update) < QUICK:
        step, update = _calibrate_on(setup, images=CALIBRATION_IMAGES)
    return step, update * setup.config.schedule.batch


def _calibrate_on(setup: Setup, images: int) -> tuple[float, float]:
    """Seconds per image of an attack step and of an update, measured after a first try."""
    process, split = replace(setup.config.attack, precision="float32"), setup.train  # CPUs may emulate bfloat16
    chosen, labels = torch.from_numpy(split.images[:images]), torch.from_numpy(split.labels[:images])
    start = draw_start(process, 0, split.rows[:images], tuple(chosen.shape[1:]))
    config = replace(setup.config, train=replace(setup.config.train, precision="float32"))
    robust, learner, clean = setup.build(), replace(setup, config=config).learner(), chosen.float() / 255
    everything = torch.ones(images, dtype=torch.bool)
    t = torch.full_like(labels, process.steps)
    batch = TrainingBatch(states=clean, clean=clean, labels=labels, t=t, fresh=everything, last=everything)
    with cpu_threads(process.threads):
        step = _time(lambda: attack(robust, chosen, labels, process, start, steps=1))
    with cpu_threads(setup.config.train.threads):
        update = _time(lambda: learner.update(batch))
    return step / images, update / images


def predicted_bytes(plan: Plan, steps: int) -> int:
    """Most bytes of a segment's arrays, before compression: planes and a stored start, or differences."""
    pixels = plan.data.channels * plan.data.size**2
    if plan.recipe.threat.norm == "L2":
        return 2 * pixels * (steps + 1)
    start = 2 * pixels if plan.recipe.schedule.warm_start or plan.recipe.attack.start == "gaussian" else 0
    return 2 * steps * -(-pixels // 8) + start


def _time(work: Callable[[], object]) -> float:
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _state(built: bool) -> str:
    return "built" if built else "to do"
