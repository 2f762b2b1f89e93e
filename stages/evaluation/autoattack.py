"""AutoAttack (Croce & Hein 2020) on one evaluation chunk by its official code, and a second look at the result.

The official code does not say which of its attacks broke an image. Here they run one after the other,
each on the images that are left, with the very batches and seeds of one call of the standard version:
the verdicts are the same.
"""

import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from pyautoattack import AutoAttack, checks
from torch import Tensor, nn

from stages.evaluation.accuracy import device_of, evaluating, predict, to_float
from stages.rap.threat import Norm, ThreatModel

Version = Literal["standard", "plus", "rand"]
VERSIONS = ("standard", "plus", "rand")
FEWEST_CLASSES = 4  # the targeted DLR loss of APGD-T looks at the four largest logits

# A float32 pixel near 1 is rounded by up to 6e-8 where x + radius is formed, and L2 lengths are summed in
# float32; 1e-6 covers both and is far below anything that changes a prediction's meaning (1/255 = 4e-3).
TOLERANCE = 1e-6
SQUARE_ALONE = 0.002  # share of images above which the official code calls Square's own breaks suspicious


@dataclass(frozen=True, kw_only=True)
class AutoAttackConfig:
    """AutoAttack over a number of test images, in chunks that can run anywhere and be resumed."""

    version: Version = "standard"
    """Set of attacks: standard (claims), plus (more attacks), rand (for models that draw random numbers)."""
    images: int = 128
    """Test images attacked."""
    chunk: int = 64
    """Images of an evaluation chunk, the piece of work that is attacked, recorded and resumed as a whole."""
    batch: int = 64
    """Images attacked together inside a chunk. It decides the random numbers, so it is part of the result."""
    seed: int = 0
    """Seed of every attack, the same for each chunk, as in the official code."""

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise ValueError(f"evaluation.version is {self.version!r}; allowed are {', '.join(VERSIONS)}")
        for name in ("images", "chunk", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkVerdict:
    """What AutoAttack found on a chunk, image by image.

    ``broken_by`` names the first attack that broke an image, "clean" where the image itself is
    misclassified (which counts as not robust), None where it stood. ``adversarial`` holds the broken
    images' adversaries and the other images as they are, ``distance`` how far they are from the images
    in the threat's norm. ``flags`` are the official code's warnings, and say when not to trust it.
    """

    broken_by: tuple[str | None, ...]
    adversarial: Float32[np.ndarray, "image channel height width"]
    distance: Float64[np.ndarray, " image"]
    flags: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def clean(self) -> Bool[np.ndarray, " image"]:
        """True where the image itself is classified correctly."""
        return np.array([attack != "clean" for attack in self.broken_by])

    @property
    def robust(self) -> Bool[np.ndarray, " image"]:
        """True where the image is classified correctly and no attack broke it."""
        return np.array([attack is None for attack in self.broken_by])


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A second look at a verdict: the positions in the chunk where it does not hold."""

    images: int
    broken: int
    outside_ball: tuple[int, ...]
    outside_range: tuple[int, ...]
    judged_otherwise: tuple[int, ...]
    largest_distance: float

    @property
    def holds(self) -> bool:
        """True when every adversarial image is one, and every other image is classified correctly."""
        return not (self.outside_ball or self.outside_range or self.judged_otherwise)


def attack_chunk(
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    *,
    config: AutoAttackConfig,
) -> ChunkVerdict:
    """The official AutoAttack on one chunk; the same bits for the same seed, device and threads.

    Leaves the model's mode and gradients, the random state of PyTorch and the logger as they were.
    Raises ValueError for a model with fewer than 4 classes, for which AutoAttack's losses do not exist.
    """
    device, labels = device_of(model), labels.cpu()
    clean = to_float(images)
    adversarial = clean.clone()
    broken_by: list[str | None] = [
        None if right else "clean" for right in predict(model, clean, batch=config.batch) == labels.numpy()
    ]
    seconds: dict[str, float] = {}
    with evaluating(model), _official_code(device) as flags:
        official = _official(model, clean[:1].to(device), threat, config)
        for attack in official.attacks_to_run or ():
            standing = [i for i, by in enumerate(broken_by) if by is None]
            if not standing:
                break
            began, official.attacks_to_run = time.perf_counter(), [attack]
            found, predicted = official.run_standard_evaluation(
                clean[standing], labels[standing], batch_size=config.batch
            )
            seconds[attack] = time.perf_counter() - began
            for i, image, label in zip(standing, found, predicted, strict=True):
                if label != labels[i]:
                    broken_by[i], adversarial[i] = attack, image
    return ChunkVerdict(
        broken_by=tuple(broken_by),
        adversarial=adversarial.numpy(),
        distance=distances(adversarial, clean, threat.norm),
        flags=flags.messages,
        seconds=seconds,
    )


def verify_chunk(
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    verdict: ChunkVerdict,
    threat: ThreatModel,
    *,
    batch: int = 64,
) -> Verification:
    """The verdict checked again without AutoAttack: ball, range of pixels, and the model's predictions.

    The ball may be exceeded by `TOLERANCE`, the range [0, 1] not at all; a NaN is outside of both.
    """
    adversarial = torch.from_numpy(verdict.adversarial)
    distance = distances(adversarial, to_float(images), threat.norm)
    inside = ((adversarial >= 0) & (adversarial <= 1)).flatten(1).all(1).numpy()
    correct = predict(model, adversarial.nan_to_num(), batch=batch) == labels.numpy(force=True)
    return Verification(
        images=len(images),
        broken=int((~verdict.robust).sum()),
        outside_ball=_positions(~(distance <= threat.radius + TOLERANCE)),
        outside_range=_positions(~inside),
        judged_otherwise=_positions(correct != verdict.robust),
        largest_distance=float(distance.max()),
    )


def square_flag(broken_by: Sequence[str | None]) -> str | None:
    """The official code's warning about Square, over all images: per chunk it would depend on the chunk."""
    alone = sum(attack == "square" for attack in broken_by)
    if alone <= SQUARE_ALONE * len(broken_by):
        return None
    return (
        f"square: {alone} of {len(broken_by)} images were broken by Square alone, which uses no gradients: "
        "the gradients of this model may mislead, and its robust accuracy may be overestimated"
    )


def distances(
    adversarial: Float32[Tensor, "image channel height width"],
    clean: Float32[Tensor, "image channel height width"],
    norm: Norm,
) -> Float64[np.ndarray, " image"]:
    """The distance of each pair of images in a norm, computed in float64."""
    difference = (adversarial.double() - clean.double()).flatten(1)
    return difference.norm(p=torch.inf if norm == "Linf" else 2, dim=1).numpy()


def _positions(mask: Bool[np.ndarray, " image"]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())


def _official(
    model: nn.Module,
    probe: Float[Tensor, "1 channel height width"],
    threat: ThreatModel,
    config: AutoAttackConfig,
) -> AutoAttack:
    with torch.no_grad():
        classes = model(probe).shape[1]
    if classes < FEWEST_CLASSES:
        raise ValueError(
            f"AutoAttack needs at least {FEWEST_CLASSES} classes for its targeted loss, and the model has "
            f"{classes}: evaluate it with PGD"
        )
    official = AutoAttack(
        model,
        norm=threat.norm,
        eps=threat.radius,
        seed=config.seed,
        version=config.version,
        device=str(probe.device),
    )
    # The official 9 targets are for 10 classes or more; with fewer it would ask for classes that are not there.
    official.apgd_targeted.n_target_classes = min(9, classes - 1)
    official.fab.n_target_classes = min(9, classes - 1)
    return official


class _Flags(logging.Handler):
    """Keeps what the official code warns of: of each kind of warning, the one with the largest count."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().removesuffix(f" See {checks.checks_doc_path} for details.")
        kind = re.sub(r"\d+", "#", message)
        self._kept[kind] = max(self._kept.get(kind, message), message, key=_numbers)

    @property
    def messages(self) -> tuple[str, ...]:
        return tuple(self._kept.values())


def _numbers(message: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", message)]


@contextmanager
def _official_code(device: torch.device) -> Iterator[_Flags]:
    """Catches what the official code does to the process: its log, the random seed, a trace function.

    It also counts the gradients taken inside ``forward`` in a global that it never resets, by which one
    model that takes them would flag all later ones.
    """
    logger, flags, tracer = logging.getLogger("auto-attack"), _Flags(), sys.gettrace()
    propagated = logger.propagate
    logger.addHandler(flags)
    logger.propagate = False
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield flags
    finally:
        logger.removeHandler(flags)
        logger.propagate = propagated
        sys.settrace(tracer)
