"""How fast? Attack steps and updates a second, against a bare loop of the same networks and the card's peak."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from pipeline.recipe import Recipe
from stages.numerics import Precision
from stages.rap.attack import attack
from stages.rap.norms import draw_start
from stages.rap.robust import RobustClassifier
from stages.training.adapter import Learner
from stages.training.batches import TrainingBatch
from stages.training.setup import Setup

from .bench import Bench, operations

ROWS = 10  # of the profiler's table
Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the product computes: what a recipe says, and whether its networks are made faster."""

    precision: Precision = "bfloat16"
    faster: bool = True
    compiled: bool = False


WAYS = {
    "bfloat16": Way(),
    "bfloat16, networks as they come": Way(faster=False),
    "tf32": Way(precision="tf32"),
    "float32": Way(precision="float32"),
}
COMPILED = {"bfloat16, compiled": Way(compiled=True)}
"""A part of its own: compiling takes longer than everything else."""


def fast(bench: Bench, deadline: float, keep: Keep, *, ways: dict[str, Way]) -> dict[str, Any]:
    """Every way of every pair of networks for which there is time, the small pair first."""
    found: dict[str, Any] = {"peak_tflops": peak(bench), "pairs": {}}
    print(f"bfloat16 product: {found['peak_tflops']:.0f} TFLOP/s", flush=True)
    for name, recipe in bench.pairs.items():
        found["pairs"][name] = pair = costs(bench, recipe)
        builds = {"bare loop, float32": partial(bare, bench, recipe)}
        builds |= {label: partial(product, bench, recipe, way) for label, way in ways.items()}
        for label, build in builds.items():
            if time.perf_counter() < deadline:
                pair[label] = timed(bench, recipe, pair, build, found["peak_tflops"])
                print(f"{name}, {label}: {pair[label]}", flush=True)
            keep(found)
    found["kernels"] = kernels(bench)
    found["table"] = table(found)
    return found


def peak(bench: Bench) -> float:
    """TFLOP/s of a large bfloat16 product."""
    size = bench.sizes.product
    left, right = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / bench.seconds(lambda: left @ right) / 1e12


def costs(bench: Bench, recipe: Recipe) -> dict[str, Any]:
    """GFLOP an image: of each network's forward pass, an attack step, and an update (the classifier frozen)."""
    robust = bench.setup(recipe, "counted").build()
    images, _ = bench.images(1)
    assert robust.adapter is not None
    t = torch.zeros(1, dtype=torch.int64)
    a, c = operations(robust.adapter, images.float(), t) / 1e9, operations(robust.classifier, images.float()) / 1e9
    return {"adapter": a, "classifier": c, "attack step": 2 * a + 2 * c, "update": 3 * a + 2 * c}


def timed(
    bench: Bench,
    recipe: Recipe,
    pair: dict[str, Any],
    build: Callable[[], tuple[Callable[[], object], Callable[[], object]]],
    tflops: float,
) -> dict[str, Any]:
    """Images a second, TFLOP/s, share of the peak and memory of an attack step and an update; or why there are none."""
    found: dict[str, Any] = {}
    try:
        batches = (recipe.attack.batch, recipe.schedule.batch)
        for name, work, batch in zip(("attack step", "update"), build(), batches, strict=True):
            seconds = bench.seconds(work)
            rate = batch * pair[name] / 1e3 / seconds
            figures = {"images_per_second": batch / seconds, "tflops": rate, "share_of_peak": rate / tflops}
            found[name] = {**figures, "gib": bench.memory(work)}
    except (RuntimeError, ValueError) as error:  # no memory, or no compiler
        found["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def product(bench: Bench, recipe: Recipe, way: Way) -> tuple[Callable[[], object], Callable[[], object]]:
    """An attack step and an update as the product makes them."""
    arithmetic: dict[str, Any] = {"precision": way.precision, "compiled": way.compiled}
    process = replace(recipe.attack.process(recipe.threat), **arithmetic)
    setup = bench.setup(recipe, "timed", attack=process, train=replace(recipe.train, **arithmetic))
    generating = setup.build_faster(process) if way.faster else setup.build()
    learner = setup.learner() if way.faster else Learner(setup.build(), setup.config.train, total_updates=99, seed=0)
    images, labels = (each.to(bench.device) for each in bench.images(recipe.attack.batch))
    start = start_of(bench, setup, len(images))
    batch = batch_of(bench, recipe)

    def step() -> None:
        with process.applied():
            attack(generating, images, labels, process, start, process.times(1))

    def update() -> None:
        with setup.config.train.applied():
            learner.update(batch)

    return step, update


def bare(bench: Bench, recipe: Recipe) -> tuple[Callable[[], object], Callable[[], object]]:
    """The same as anyone would write them first: eager, float32, and the loss read after each update."""
    setup = bench.setup(recipe, "bare")
    attacked, robust = setup.build(), setup.build()
    images, labels = (each.to(bench.device) for each in bench.images(recipe.attack.batch))
    pixels, batch, (size, radius) = images.float() / 255, batch_of(bench, recipe), (4 / 255, recipe.threat.radius)
    assert robust.adapter is not None
    weights = list(robust.adapter.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-3)

    def step() -> Tensor:
        states = (pixels + size).clamp(0, 1).requires_grad_(True)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits(attacked, states), labels), states)
        moved = states.detach() + size * gradient.sign()
        return torch.minimum(torch.maximum(moved, pixels - radius), pixels + radius).clamp(0, 1)

    def update() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(logits(robust, batch.states), batch.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        return loss.item()

    return step, update


def logits(robust: RobustClassifier, images: Tensor) -> Tensor:
    return robust.classify(robust.restore(images, torch.full((len(images),), robust.steps, device=images.device)))


def start_of(bench: Bench, setup: Setup, count: int) -> Tensor:
    rows, shape = setup.train.rows[torch.arange(count).numpy() % len(setup.train)], setup.train.images.shape[1:]
    return draw_start(setup.config.attack, 0, rows, tuple(shape)).to(bench.device)


def batch_of(bench: Bench, recipe: Recipe) -> TrainingBatch:
    images, labels = (each.to(bench.device) for each in bench.images(recipe.schedule.batch))
    pixels, t = images.float() / 255, torch.full_like(labels, recipe.attack.steps)
    return TrainingBatch(states=(pixels + 4 / 255).clamp(0, 1), clean=pixels, labels=labels, t=t)


def kernels(bench: Bench) -> list[dict[str, Any]]:
    """Where the time of an attack step and an update goes: the kernels (on a CPU the operations) that take most."""
    step, update = product(bench, bench.recipe, Way(precision=bench.recipe.attack.precision))
    step()
    update()
    on_gpu = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        step()
        update()
        bench.wait()
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, own))
    if on_gpu:  # else operations are counted beside the kernels that they launch
        events = [event for event in events if event.device_type.name == "CUDA"]
    whole = sum(getattr(event, own) for event in events)
    return [
        {"name": event.key[:100], "calls": event.count, "share": getattr(event, own) / whole} for event in events[:ROWS]
    ]


def table(found: dict[str, Any]) -> list[str]:
    lines = [f"fast: bfloat16 product {found['peak_tflops']:.0f} TFLOP/s; images a second (share of that)"]
    for name, pair in found["pairs"].items():
        lines.append(f"  {name}: attack step, update")
        for label, figures in pair.items():
            if isinstance(figures, dict):
                lines.append(f"    {label:33} {figures.get('error') or '  '.join(map(said, figures.values()))}")
    return lines + [f"  {each['share']:6.1%} {each['name'][:80]}" for each in found["kernels"]]


def said(figures: dict[str, float]) -> str:
    return f"{figures['images_per_second']:10,.0f} ({figures['share_of_peak']:.1%})"
