"""Is it right? The GPU against the CPU: bit for bit where that is promised, in figures where it cannot be."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stages import numerics
from stages.evaluation.judge import JudgeConfig, judge
from stages.numerics import Arithmetic
from stages.rap.attack import Trajectory, attack, loss_gradient
from stages.rap.losses import ATTACK_LOSSES
from stages.rap.norms import draw_start
from stages.rap.process import AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import Lattice, ThreatModel
from stages.training.batches import TrainingBatch
from stages.training.rounds import run_serially
from stages.trajectories.codec import encode

from .bench import Bench

CLOSE = 1e-3  # of the norm: far above float32's rounding in another order, far below a mistake


def right(bench: Bench, deadline: float, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Every comparison that the time allows; each is a figure and whether it is as it must be."""
    checks: dict[str, Callable[[Bench], dict[str, Any]]] = {
        "lattice": lattice,
        "states decode": decodes,
        "gradients": gradients,
        "an update": updates,
        "no waiting": waits,
        "verdicts repeat": verdicts,
        "resume": resumes,
    }
    found: dict[str, Any] = {}
    for name, check in checks.items():
        if time.perf_counter() < deadline:
            found[name] = check(bench)
            print(f"{name}: {found[name]}", flush=True)
            keep({"checks": found})
    wrong = [name for name, each in found.items() if not each["right"]]
    left = [name for name in checks if name not in found]
    said = f"right: {len(found) - len(wrong)} of {len(checks)} checks passed"
    return {
        "checks": found,
        "table": [said, *(f"  wrong: {name}" for name in wrong), *(f"  no time: {n}" for n in left)],
    }


def lattice(bench: Bench) -> dict[str, Any]:
    """Every level of both grids as a float: the model's input on the GPU is the stored state, bit for bit."""
    same = True
    for denominator in (5100, 1020):
        levels = torch.arange(denominator + 1, dtype=torch.int16)
        grid = Lattice(denominator)
        same &= torch.equal(grid.to_float(levels.to(bench.device)).cpu(), grid.to_float(levels))
    return {"right": same}


def decodes(bench: Bench) -> dict[str, Any]:
    """Trajectories that were attacked on the GPU, packed and replayed on the CPU."""
    same = True
    for threat in (ThreatModel(norm="Linf", radius=8 / 255), ThreatModel(norm="L2", radius=0.5)):
        process = replace(bench.recipe, threat=threat).attack.process(threat)
        robust, images, labels, start = inputs(bench, process)
        trajectory = run(robust, images, labels, process, start, bench, steps=3)
        segments = encode(
            trajectory,
            process.lattice.from_bytes(images),
            process=process,
            index=torch.arange(len(images)),
            taken=torch.zeros(len(images), dtype=torch.int64),
        )
        same &= torch.equal(segments.states(process.lattice.from_bytes(images)), trajectory.levels)
    return {"right": same}


def gradients(bench: Bench) -> dict[str, Any]:
    """The attack's gradient in each precision against float32 on the CPU: relative error, and flipped signs."""
    process = bench.recipe.attack.process(bench.recipe.threat)
    robust, images, labels, start = inputs(bench, process)
    clean = process.lattice.from_bytes(images)
    low, high = process.limits(clean)
    states = process.lattice.to_float(torch.minimum(torch.maximum(clean + start, low), high))

    def gradient(arithmetic: Arithmetic, device: torch.device) -> Tensor:
        model = copy.deepcopy(robust).to(device)
        x, original, truth = (each.to(device) for each in (states, process.lattice.to_float(clean), labels))
        t, loss = torch.full_like(truth, process.steps), ATTACK_LOSSES[process.loss]
        with arithmetic.applied():
            found, _, _ = loss_gradient(model, x, original, truth, t, loss, autocast=arithmetic.autocast(device))
        return found.cpu()

    reference = gradient(Arithmetic(threads=torch.get_num_threads()), torch.device("cpu"))
    found: dict[str, Any] = {}
    for precision in ("float32", "tf32", "bfloat16"):
        other = gradient(Arithmetic(precision=precision, deterministic=True), bench.device)
        found[precision] = {
            "relative error": float((other - reference).norm() / reference.norm()),
            "flipped signs": float((other.sign() != reference.sign()).float().mean()),
        }
    return {"right": found["float32"]["relative error"] < CLOSE, **found}


def updates(bench: Bench) -> dict[str, Any]:
    """One update in float32 from the same weights, on the CPU and on the GPU: the loss, and how far weights move."""
    config = replace(bench.recipe.loop().train, precision="float32", optimizer="sgd", warmup_updates=0)
    results = []
    for device in ("cpu", str(bench.device)):
        setup = replace(bench.setup(bench.recipe, "update", train=config), device=device)
        learner = setup.learner()
        before = {name: value.detach().cpu().clone() for name, value in learner.weights().items()}
        with config.applied():
            learner.update(training_batch(bench, bench.sizes.compared, torch.device(device)))
        moved = {name: value.detach().cpu() - before[name] for name, value in learner.weights().items()}
        results.append((learner.measured()[0]["loss"], torch.cat([value.flatten() for value in moved.values()])))
    (loss, step), (other, again) = results
    error = float((again - step).norm() / step.norm())
    return {
        "right": error < 10 * CLOSE and abs(other - loss) < CLOSE * abs(loss),
        "losses": [loss, other],
        "step": error,
    }


def waits(bench: Bench) -> dict[str, Any]:
    """Neither an update nor an attack step waits for the GPU; PyTorch raises where one does."""
    process = bench.recipe.attack.process(bench.recipe.threat)
    setup = bench.setup(bench.recipe, "waits")
    learner, robust = setup.learner(), setup.build_faster(process)
    batch = training_batch(bench, bench.sizes.compared, bench.device)
    images, labels, start = (each.to(bench.device) for each in inputs(bench, process)[1:])

    def both() -> None:
        with setup.config.train.applied():
            learner.update(batch)
        with process.applied():
            attack(robust, images, labels, process, start, process.times(2))

    both()  # what is made once
    if bench.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    except RuntimeError as error:
        return {"right": False, "waited": str(error)}
    finally:
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return {"right": True}


def verdicts(bench: Bench) -> dict[str, Any]:
    """Under a verdict's settings the same answers again, to the bit; alone, within the tolerance of all checks."""
    robust, images, labels, _ = inputs(bench, bench.recipe.attack.process(bench.recipe.threat))
    robust, pixels = robust.to(bench.device), (images.float() / 255).to(bench.device)
    with numerics.verdict(), torch.no_grad():
        answer, again = robust(pixels), robust(pixels)
        alone = torch.cat([robust(image) for image in pixels.split(1)])
    apart = float((alone - answer).abs().max() / answer.abs().max())
    rows = bench.data.train.rows[: len(images)]
    config = JudgeConfig(images=None)
    masks = [judge(robust, images, labels, rows, bench.recipe.threat, config).mask.tolist() for _ in range(2)]
    right = torch.equal(answer, again) and apart < numerics.SAME_ALONE and masks[0] == masks[1]
    return {"right": right, "alone against in a batch": apart, "the judge repeats": masks[0] == masks[1]}


def resumes(bench: Bench) -> dict[str, Any]:
    """A short training that is stopped and called again ends; deterministic, it ends in the bytes of another one."""
    ends, recipe = [], bench.recipe
    schedule = replace(recipe.schedule, rounds=4)
    exact = {"deterministic": True}
    changes: dict[str, Any] = {
        "schedule": schedule,
        "train": replace(recipe.train, **exact),
        "attack": replace(recipe.attack, **exact).process(recipe.threat),
        "judge": replace(recipe.judge, every=4),
        "checkpoint_rounds": 2,
    }
    for name in ("whole", "stopped"):
        setup, asked = bench.setup(recipe, f"resume-{name}", **changes), []

        def stopped(asked: list[None] = asked) -> bool:
            asked.append(None)
            return len(asked) > 3

        if name == "stopped":
            run_serially(setup, stopped=stopped, indexed=False)
            assert not setup.is_complete
        run_serially(setup, indexed=False)
        ends.append(setup.journal.lines()[-1]["weights"])
    return {"right": setup.is_complete, "the same bytes": ends[0] == ends[1]}


def inputs(bench: Bench, process: AttackProcess) -> tuple[RobustClassifier, Tensor, Tensor, Tensor]:
    """A robust classifier with its first weights, images, labels and starts, all on the CPU."""
    count = bench.sizes.compared
    images, labels = bench.images(count)
    start = draw_start(process, 0, bench.data.train.rows[:count], tuple(images.shape[1:]))
    return replace(bench.setup(bench.recipe, "compared"), device="cpu").build(), images, labels, start


def run(
    robust: RobustClassifier,
    images: Tensor,
    labels: Tensor,
    process: AttackProcess,
    start: Tensor,
    bench: Bench,
    *,
    steps: int,
) -> Trajectory:
    """The attack on the GPU; the result lies on the CPU."""
    given = [each.to(bench.device) for each in (images, labels, start)]
    with process.applied():
        return attack(robust.to(bench.device), given[0], given[1], process, given[2], process.times(steps)).cpu()


def training_batch(bench: Bench, count: int, device: torch.device) -> TrainingBatch:
    """Images with noise, always the same."""
    images, labels = bench.images(count)
    clean = images.float() / 255
    noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    states = (clean + bench.recipe.threat.radius * noise).clamp(0, 1)
    t = torch.full_like(labels, bench.recipe.attack.steps)
    return TrainingBatch(states=states.to(device), clean=clean.to(device), labels=labels.to(device), t=t.to(device))
