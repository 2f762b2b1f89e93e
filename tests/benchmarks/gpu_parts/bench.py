"""What the parts of the GPU benchmark share: sizes, networks, data, and how a call is timed."""

import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.presets import cifar10, cifar10_small
from pipeline.recipe import Recipe
from stages.data.datasets import ImageData, load_data
from stages.data.splits import Split
from stages.nets.architectures import build_classifier
from stages.nets.unet import UNetConfig
from stages.storage import Storage
from stages.training.setup import LoopConfig, Setup

from .packed import unpack_cifar10

TINY = UNetConfig(width=8, multipliers=(1, 2), patch=2, all_skips=False, output="sigmoid")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    product: int = 8192
    """Side of the matrices whose product says what the card can do."""
    seconds: float = 0.7
    """Time of each timing."""
    compared: int = 32
    """Images on which the GPU is compared with the CPU."""
    attacked: int = 512
    """Test images for AutoAttack, together."""
    judged: int | None = None
    """Test images for the judge; None: all of them."""


SMALL = Sizes(product=64, seconds=0.05, compared=8, attacked=4, judged=16)


class Bench:
    """The device with everything that is run on it."""

    def __init__(self, *, device: str, tiny: bool, scratch: Path, prepared: Path | None, budget: float) -> None:
        self.tiny, self.scratch, self.prepared, self.budget = tiny, scratch, prepared, budget
        self.device, self.sizes = torch.device(device), SMALL if tiny else Sizes()
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # as recipes do

    @cached_property
    def recipe(self) -> Recipe:
        """The preset for one card; tiny: with small networks and batches, in float32."""
        recipe = cifar10_small()
        if not self.tiny:
            return recipe
        return replace(
            recipe,
            classifier=replace(
                recipe.classifier, architecture="cnn", epochs=4, batch=16, learning_rate=0.05, precision="float32"
            ),
            attack=replace(recipe.attack, batch=16, precision="float32"),
            schedule=replace(recipe.schedule, cohort_images=16, round_cohorts=2, batch=8),
            train=replace(recipe.train, precision="float32", warmup_updates=2),
            judge=replace(recipe.judge, images=8),
            checkpoint_rounds=2,
        )

    @property
    def pairs(self) -> dict[str, Recipe]:
        """A recipe for each pair of networks that is timed, by name."""
        small = {"ResNet-18, U-Net 11M": self.recipe}
        return small if self.tiny else {**small, "WRN-28-10, U-Net 36M": cifar10("Linf", 8 / 255)}

    @cached_property
    def data(self) -> ImageData:
        """CIFAR-10, as it was prepared or as the recipe finds it; tiny: made-up images."""
        if self.tiny:
            return made_up()
        if self.prepared is None:
            return load_data(self.recipe.data)
        name = unpack_cifar10(self.prepared, self.scratch / "data")
        return replace(load_data(replace(self.recipe.data, root=str(self.scratch / "data"))), name=name)

    def classifier(self, recipe: Recipe) -> nn.Module:
        """The recipe's classifier with its first weights, always the same ones, in eval mode on the CPU."""
        data = self.data
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return build_classifier(
                recipe.classifier,
                channels=data.channels,
                size=data.size,
                classes=len(data.classes),
                mean=data.mean,
                std=data.std,
            )

    def setup(self, recipe: Recipe, name: str, classifier: nn.Module | None = None, **changes: object) -> Setup:
        """The loop of a recipe in a store of its own; ``changes`` are fields of its LoopConfig."""
        config: LoopConfig = replace(recipe.loop(), **changes)  # pyright: ignore[reportArgumentType]
        if self.tiny:
            config = replace(config, adapter=TINY)
        return Setup(
            config=config,
            train=self.data.train,
            holdout=self.data.holdout,
            classifier=self.classifier(recipe) if classifier is None else classifier,
            classifier_fingerprint="benchmark",
            root=Storage.at(self.scratch / name),
            name=f"runs/{name}",
            device=str(self.device),
            repeats=self.device.type == "cpu",
            keep_versions=False,
        )

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """Images (uint8) and labels of the split that is attacked, on the CPU; again from the first where it ends."""
        split = self.data.train
        chosen = np.arange(count) % len(split)
        return torch.from_numpy(split.images[chosen]), torch.from_numpy(split.labels[chosen])

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], *, warm: int = 3, together: int = 5) -> float:
        """The median time of a call, after some that do not count; ``together``, as the host runs ahead of a GPU."""
        for _ in range(warm):
            work()
        self.wait()
        ends, times = time.perf_counter() + self.sizes.seconds, []
        while not times or time.perf_counter() < ends:
            began = time.perf_counter()
            for _ in range(together):
                work()
            self.wait()
            times.append((time.perf_counter() - began) / together)
        return float(np.median(times))

    def memory(self, work: Callable[[], object]) -> float:
        """GiB that a call needs at most, with the weights; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) / 2**30


def made_up(count: int = 96, size: int = 8) -> ImageData:
    """Images of ten colours and noise."""
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 216, (10, 3, 1, 1))

    def split(images: int) -> Split:
        labels = np.arange(images) % 10
        pixels = colours[labels] + generator.integers(-40, 41, (images, 3, size, size))
        return Split(pixels.astype(np.uint8), labels.astype(np.int64), np.arange(images))

    train = split(count)
    classes = tuple(map(str, range(10)))
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return ImageData("made-up images", train, train, split(32), split(32), classes, mean, std)


def operations(network: nn.Module, *inputs: Tensor) -> float:
    """Floating-point operations of a forward pass for one image, counted without computing them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(*(each[:1].to("meta") for each in inputs))
    return float(counter.get_total_flops())


def describe(device: torch.device) -> dict[str, Any]:
    """The card and the software, as they belong to every figure."""
    commit = None
    with suppress(OSError, subprocess.CalledProcessError):  # a copy without its history
        here = Path(__file__).parent
        command = ["git", "-C", str(here), "rev-parse", "HEAD"]
        commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    found = {
        "card": "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": commit,
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {
            "card": card.name,
            "memory": round(card.total_memory / 2**30, 1),
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found
