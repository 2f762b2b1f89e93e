"""Which adapter gives the most robustness for its cost: the pipeline's serial loop with other adapters.

    python -m tests.benchmarks adapters --preset digits --rounds 300 --seeds 0 1 2

Every adapter trains with the preset's recipe for as long as the preset's own takes for --rounds: what a round of it
costs in memory is measured in turn with one of the preset (CPU time of one thread), so that a machine that is slower in
one hour than in the next favours none. The preset's learning rate and half of it are tried under the first seed, the
judge on 400 images of the hold-out chooses, and the other seeds take that. One rival is no adapter in front: low-rank
corrections beside each layer inside the frozen classifier, with as many parameters as the preset's adapter, and without
the consistency term, with which adversarial training of the classifier fails. Each result is written down as it is
known, and the same command goes on.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from loop_cost import bare_loop
from time_to_robustness import MARGIN, RESULTS, TUNING, accuracy, judged, read, setup_of, write
from torch import Tensor, nn

from pipeline.artifacts import provenance
from pipeline.presets import PRESETS
from pipeline.recipe import Recipe
from stages.data.datasets import ImageData, load_data
from stages.nets import unet
from stages.nets.cnn import CNN
from stages.nets.copies import copied
from stages.nets.unet import UNET_SIZES
from stages.training.rounds import run_serially
from stages.training.setup import Setup, load_trained

TURNS = 40  # rounds that say what one costs
INSIDE = "inside the frozen classifier"
ADAPTERS: dict[str, dict[str, Any]] = {  # what each changes in "flat", and which normalisation it has
    "flat": {},
    "flat, half the width": {"width": 8},
    "flat, twice the width": {"width": 32},
    "flat, two blocks": {"blocks": 2},
    "flat, all skips": {"all_skips": True},
    "flat, half the resolution": {"patch": 2},
    "flat, half the resolution, twice the width": {"patch": 2, "width": 32},
    "tiny": {"multipliers": (1, 2)},
    "tiny, two levels below": {"multipliers": (1, 2, 2)},
    "tiny-half": {"multipliers": (1, 2), "patch": 2},
    "tiny-half, twice the width": {"multipliers": (1, 2), "patch": 2, "width": 32},
    "flat, one group": {"norm": "one group"},
    "flat, scale and shift alone": {"norm": "scale and shift"},
    "flat, no normalisation": {"norm": "none"},
    "flat, residual output": {"output": "residual"},
    INSIDE: {},
}


class OneGroup(nn.GroupNorm):
    """All channels normalised together."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)


class ScaleAndShift(nn.Module):
    """What a normalisation learns, without one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels, 1, 1)), nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(
        self, features: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        return features * self.weight + self.bias


NORMS: dict[str, type[nn.Module]] = {"one group": OneGroup, "scale and shift": ScaleAndShift, "none": nn.Identity}


class Corrected(nn.Module):
    """A frozen layer, and beside it one of low rank that is trained and starts at zero (LoRA, Hu et al. 2022; beside
    convolutions, parallel residual adapters, Rebuffi et al. 2018)."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = (layer,)  # in a tuple, its weights are none of this module's
        if isinstance(layer, nn.Conv2d):
            self.down = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, bias=False)  # pyright: ignore[reportArgumentType]
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.frozen[0](inputs) + self.up(self.down(inputs))


def corrected(classifier: CNN, parameters: int) -> CNN:
    """The CNN with such corrections beside all four of its layers, of the rank that comes nearest to ``parameters``."""
    layers = {name: layer for name, layer in classifier.named_children() if isinstance(layer, nn.Conv2d | nn.Linear)}
    one = sum(weights_of(Corrected(layer, 1)) for layer in layers.values())
    for name, layer in layers.items():
        setattr(classifier, name, Corrected(layer.requires_grad_(False), round(parameters / one)))
    return classifier


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    recipe = PRESETS[arguments.preset]()
    data = load_data(replace(recipe.data, holdout_images=TUNING))
    data = replace(data, test=data.holdout)
    found = read(arguments.results)
    for seed in arguments.seeds:
        for name in arguments.adapters:
            for rate in rates(name, seed, arguments, recipe, found):
                key = f"{name}, learning rate {rate:g}, {arguments.rounds} rounds, seed {seed}"
                if key not in found:
                    earlier = next((run["cost"] for run in found.values() if run["adapter"] == name), None)
                    cost = earlier or cost_of(name, recipe, data)
                    found[key] = {"adapter": name, "learning_rate": rate, "rounds": arguments.rounds, "seed": seed}
                    found[key] |= measure(name, rate, seed, cost, round(arguments.rounds / cost), recipe, data)
                    write(arguments.results, found)
                print(f"{key}: judge {accuracy(found[key]['judge'])}, cost {found[key]['cost']:g}", flush=True)
    print(f"\n{table([run for run in found.values() if run['rounds'] == arguments.rounds])}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="digits", choices=["digits", "mnist"])
    parser.add_argument("--adapters", nargs="+", default=list(ADAPTERS), choices=ADAPTERS, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=300, help="of the preset's own adapter; all take its time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first chooses the learning rate")
    parser.add_argument("--results", type=Path, help="JSON to write, and to go on from; unset: results/ beside this")
    arguments = parser.parse_args()
    arguments.results = arguments.results or RESULTS / f"adapters-{arguments.preset}.json"
    return arguments


def rates(
    name: str, seed: int, arguments: argparse.Namespace, recipe: Recipe, found: dict[str, dict[str, Any]]
) -> list[float]:
    """The learning rates to train with: both under the first seed, then the one that did better there."""
    both = [recipe.train.learning_rate, recipe.train.learning_rate / 2]
    first = {
        run["learning_rate"]: run["judge"]["correct"]
        for run in found.values()
        if (run["adapter"], run["rounds"], run["seed"]) == (name, arguments.rounds, arguments.seeds[0])
    }
    return both if seed == arguments.seeds[0] else [max(both, key=lambda rate: first[rate])]


def cost_of(name: str, recipe: Recipe, data: ImageData) -> float:
    """CPU time of a round with one adapter in memory, in rounds of the preset; in turn, the median of the ratios."""

    def seconds(visit_next: Callable[[], None]) -> float:
        began = time.thread_time()
        visit_next()
        return time.thread_time() - began

    with tempfile.TemporaryDirectory() as folder:
        preset = bare_loop(setup_of(recipe, data, Path(folder) / "preset", rounds=TURNS))
        with normalised(ADAPTERS[name].get("norm")):
            mine = bare_loop(setup_with(name, of(name, recipe), data, Path(folder) / "mine", TURNS))
    ratios = [seconds(mine) / seconds(preset) for _ in range(TURNS)]
    return round(statistics.median(ratios[MARGIN:]), 3)


def measure(
    name: str, rate: float, seed: int, cost: float, rounds: int, recipe: Recipe, data: ImageData
) -> dict[str, Any]:
    """Train with one adapter and judge it."""
    recipe = of(name, replace(recipe, seed=seed, train=replace(recipe.train, learning_rate=rate)))
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, normalised(ADAPTERS[name].get("norm")):
        setup = setup_with(name, recipe, data, Path(folder), rounds)
        run_serially(setup)
        weights, _ = setup.journal.best_weights()
        robust = load_trained(setup.build(), weights)
    seconds = time.process_time() - began
    return {
        "cost": cost,
        "parameters": sum(value.numel() for value in weights.values()),
        "updates": setup.schedule.updates,
        "seconds": round(seconds, 1),
        **judged(robust, recipe, data),
        "provenance": provenance("cpu", seconds),
    }


def of(name: str, recipe: Recipe) -> Recipe:
    """The recipe as one adapter needs it."""
    if name != INSIDE:
        return recipe
    objective = replace(recipe.train.objective, consistency=0.0)
    return replace(recipe, train=replace(recipe.train, what="classifier", objective=objective))


def setup_with(name: str, recipe: Recipe, data: ImageData, folder: Path, rounds: int) -> Setup:
    """The preset's loop with another adapter."""
    setup = setup_of(recipe, data, folder, rounds=rounds)
    if name == INSIDE:
        preset = unet.UNet(recipe.adapter.unet(), data.channels)
        classifier = copied(setup.classifier)
        assert isinstance(classifier, CNN)
        with torch.random.fork_rng([]):
            torch.manual_seed(recipe.seed)
            return replace(setup, classifier=corrected(classifier, weights_of(preset)).eval())
    return replace(setup, config=replace(setup.config, adapter=config_of(name)))


def config_of(name: str) -> unet.UNetConfig:
    """The shape of an adapter, whose normalisation is `normalised`'s."""
    changes = {field: value for field, value in ADAPTERS[name].items() if field != "norm"}
    return replace(UNET_SIZES["flat"], **{"output": "sigmoid", **changes})


@contextmanager
def normalised(norm: str | None) -> Iterator[None]:
    """Inside, adapters are built with another normalisation."""
    before = unet.GroupNorm
    setattr(unet, "GroupNorm", NORMS.get(norm or "", before))  # noqa: B010 - another type
    try:
        yield
    finally:
        unet.GroupNorm = before


def weights_of(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def table(runs: list[dict[str, Any]]) -> str:
    """The results in Markdown, medians over the seeds of the learning rate that the first one chose."""
    lines = [
        "| adapter | parameters | a round costs | updates | learning rate | clean | judge, median | by seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(run["adapter"] for run in runs):
        mine = [run for run in runs if run["adapter"] == name]
        first = [run for run in mine if run["seed"] == mine[0]["seed"]]
        rate = max(first, key=lambda run: run["judge"]["correct"])["learning_rate"]
        mine = [run for run in mine if run["learning_rate"] == rate]
        values = [100 * run["judge"]["value"] for run in mine]
        clean = statistics.median(100 * run["clean"]["value"] for run in mine)
        lines.append(
            f"| {name} | {mine[0]['parameters']:,} | {mine[0]['cost']:.2f} | {mine[0]['updates']:,} | {rate:g} "
            f"| {clean:.1f} | {statistics.median(values):.1f} | {', '.join(f'{value:.1f}' for value in values)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
