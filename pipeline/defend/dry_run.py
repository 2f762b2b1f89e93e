"""--dry-run: each stage, its fingerprint, whether it is built, and what the rest costs.

Bytes and counts follow from the recipe; times come from a short calibration of the real networks on this
machine, and are estimates for as many workers as it has.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.defend.plan import Plan
from pipeline.defend.searching import search_fingerprint
from pipeline.defend.survey import Survey, survey
from pipeline.placement import own_device
from stages.evaluation.lineup import Lineup
from stages.rap.attack import attack
from stages.rap.norms import draw_start
from stages.training.ablations import PARTS
from stages.training.batches import TrainingBatch
from stages.training.setup import Setup

CALIBRATION_IMAGES = 32
QUICK = 0.05  # seconds an image; below, more images can be timed, whose overhead is shared as in a real batch
# Forward and backward passes of an iteration on an image that survives: FAB takes about two, and Square's are forward
# passes at a third. Of AutoAttack standard: APGD-CE 100, APGD-T 9 x 100, FAB-T 9 x 100 x 2, Square 5,000 / 3.
PASSES = {"fab": 2.0, "fab-t": 2.0, "square": 1 / 3}


@dataclass(frozen=True)
class StageCost:
    """A line of the dry run; a stage that is built costs nothing."""

    name: str
    fingerprint: str
    state: str
    cost: str = ""


def stages(plan: Plan) -> list[StageCost]:
    """The stages of a plan in order, with what they have and what the rest would cost."""
    recipe, found = plan.recipe, survey(plan)
    # a run whose evaluation is there has nothing left that is timed
    step, update = (
        (0.0, 0.0) if "evaluation" in found.built else calibrate(found.setup, own_device(plan.command.workers))
    )
    lines = [StageCost("classifier", plan.classifier_fingerprint, "to do", f"{recipe.classifier.epochs} epochs")]
    if recipe.search.trials:
        lines.append(_search(plan, found.setup))
    lines += [_rounds(plan, found, step, update), _evaluation(plan, found, step), _checks(plan, found)]
    return [replace(line, state="built", cost="") if line.name in found.built else line for line in lines]


def _search(plan: Plan, setup: Setup) -> StageCost:
    recipe, rungs = plan.recipe, plan.recipe.rungs
    whole = replace(setup, config=recipe.trial_loop()).schedule
    first = rungs.first / rungs.rounds
    cost = (
        f"up to {recipe.search.trials} trials of {first * whole.attack_steps:,.0f} to {whole.attack_steps:,} attack "
        f"steps and {first * whole.updates:,.0f} to {whole.updates:,} updates"
    )
    return StageCost("search", search_fingerprint(plan.setup(setup.classifier), recipe), "to do", cost)


def _rounds(plan: Plan, found: Survey, step: float, update: float) -> StageCost:
    schedule, rounds = found.setup.schedule, found.setup.schedule.config.rounds
    done = found.setup.journal.checkpointed
    left = (rounds - done) / max(1, rounds)
    steps, updates = round(left * schedule.attack_steps), round(left * schedule.updates)
    size = left * rounds * schedule.examples * predicted_bytes(plan, schedule.config.visit_steps)
    shards, weights = f"{size / 1e6:,.0f} MB of shards", f"{kept_bytes(plan, found.setup) / 1e6:,.0f} MB of weights"
    cost = (
        f"{steps:,} attack steps, {updates:,} updates, up to {shards} and {weights}; about "
        f"{duration(steps * step)} of attack and {duration(updates * update)} of training"
    )
    before = "search" if plan.recipe.search.trials else "classifier"
    pending = "pending on v_0" if before in found.built else f"pending on the {before}"
    begun = next((line["attacked"] for line in found.setup.journal.read()), pending)
    return StageCost("rounds", begun, f"round {done} of {rounds}", cost)


def _evaluation(plan: Plan, found: Survey, step: float) -> StageCost:
    images, state = min(plan.recipe.evaluation.images, len(plan.data.test)), "to do"
    if found.chunks:
        state = f"{len(found.chunks) - len(found.missing)} of {len(found.chunks)} chunks"
        ours = [chunk for chunk in found.missing if (chunk.kind, chunk.model) == ("autoattack", found.model)]
        images = sum(len(chunk.split) for chunk in ours)
    took = duration(images * passes(plan.autoattack) * step)
    cost = f"{images} images under {plan.autoattack.name}, {took} of attack if every one survives"
    return StageCost("evaluation", _model(plan, found), state, cost)


def passes(lineup: Lineup) -> float:
    """Forward and backward passes of all its attacks on an image that none of them breaks.

    >>> from stages.evaluation.lineup import lineup
    >>> round(passes(lineup("standard", (), "Linf", classes=10, shape=(1, 8, 8))), -2)
    4500.0
    """
    found = zip(lineup.attacks, lineup.settings, strict=True)
    return sum(PASSES.get(attack, 1.0) * math.prod(settings.values()) for attack, settings in found)


def _checks(plan: Plan, found: Survey) -> StageCost:
    config = plan.recipe.checks
    rounds = round(config.budget * plan.recipe.schedule.rounds)
    trainings = f"{len(PARTS)} trainings of {rounds} rounds" if rounds else "no trainings"
    images = min(config.size.images, plan.recipe.evaluation.images, len(plan.data.test))
    return StageCost("checks", _model(plan, found), "to do", f"20 checks on {images} images, {trainings}")


def _model(plan: Plan, found: Survey) -> str:
    return found.model or "pending on the rounds"


def describe_costs(plan: Plan) -> str:
    """The dry run as text."""
    found, device = stages(plan), own_device(plan.command.workers)
    how = "GPU" if device == "cuda" else "CPU in float32, with the recipe's threads"
    lines = [f"run {plan.run.name} on {plan.data.name}, below {plan.root}", ""]
    for stage in found:
        lines += [f"{stage.name:12} {stage.fingerprint:34} {stage.state}"]
        lines += [f"{'':12} {stage.cost}"] if stage.cost else []
    if any(stage.cost for stage in found):
        lines += [
            "",
            f"times: one worker on this machine's {how}, from a short calibration",
        ]
    else:
        lines += ["", "everything is there: the same command without --dry-run prints the results"]
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


def calibrate(setup: Setup, device: str) -> tuple[float, float]:
    """Seconds of one attack step on one image, and of one update.

    On a GPU whole batches are timed, as the recipe computes; on a CPU, which may have to emulate bfloat16, a few
    images in float32, and of large networks two.
    """
    config = setup.config
    if device == "cuda":
        sizes = config.attack.batch, config.schedule.batch
        step, update = _timed(replace(setup, device=device), sizes)
        return step, update * config.schedule.batch
    plain = replace(
        config, attack=replace(config.attack, precision="float32"), train=replace(config.train, precision="float32")
    )
    step, update = _timed(replace(setup, config=plain), (2, 2))
    if max(step, update) < QUICK:
        step, update = _timed(replace(setup, config=plain), (CALIBRATION_IMAGES, CALIBRATION_IMAGES))
    return step, update * config.schedule.batch


def _timed(setup: Setup, sizes: tuple[int, int]) -> tuple[float, float]:
    """Seconds per image of an attack step and of an update on so many images, measured after a first try."""
    process, learner = setup.config.attack, setup.learner()
    (images, labels, rows), (clean, truth, _) = (_first(setup, size) for size in sizes)
    start = draw_start(process, 0, rows, tuple(images.shape[1:])).to(setup.device)
    pixels = process.lattice.to_float(process.lattice.from_bytes(clean))
    t = torch.full_like(truth, process.steps)
    batch = TrainingBatch(states=pixels, clean=pixels, labels=truth, t=t, starts=pixels)
    with process.applied():
        robust = setup.build_faster(process)
        step = _time(lambda: attack(robust, images, labels, process, start, process.times(1)).success.cpu())
    with setup.config.train.applied():
        update = _time(lambda: (learner.update(batch), learner.measured()))  # reading them waits for the device
    return step / len(images), update / len(clean)


def _first(setup: Setup, count: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """The first training images of the setup with labels on its device, and their rows; again from the first where
    there are fewer."""
    chosen = np.arange(count) % len(setup.train)
    images, labels = torch.from_numpy(setup.train.images[chosen]), torch.from_numpy(setup.train.labels[chosen])
    return images.to(setup.device), labels.to(setup.device), setup.train.rows[chosen]


def predicted_bytes(plan: Plan, steps: int) -> int:
    """Most bytes of a segment's arrays, before compression: planes and a stored start, or differences."""
    pixels = math.prod(plan.data.shape)
    if plan.recipe.threat.norm == "L2":
        return 2 * pixels * (steps + 1)
    start = 2 * pixels if plan.recipe.schedule.life > 1 or plan.recipe.attack.start == "gaussian" else 0
    return 2 * steps * -(-pixels // 8) + start


def kept_bytes(plan: Plan, setup: Setup) -> int:
    """Bytes of weights at their most: the last checkpoint (with the optimizer's state) and the one that replaces it,
    the best weights, and every version where they are kept."""
    size = sum(4 * weight.numel() for weight in setup.learner().weights().values())
    kept = plan.recipe.schedule.rounds + 1 if plan.command.keep_versions else 0
    return size * (2 * (4 + setup.config.schedule.overlap_rounds) + 2 + kept)


def _time(work: Callable[[], object]) -> float:
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
