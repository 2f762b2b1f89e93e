"""AutoAttack (Croce & Hein 2020) on one evaluation chunk, by its official code.

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

import torch
from jaxtyping import Float, Int64, UInt8
from pyautoattack import AutoAttack, checks
from torch import Tensor, nn

from stages.evaluation.accuracy import device_of, evaluating, predict, to_float
from stages.evaluation.verdict import ChunkVerdict, distances
from stages.rap.threat import ThreatModel

Version = Literal["standard", "plus", "rand", "custom"]
VERSIONS = ("standard", "plus", "rand", "custom")
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
# DLR looks at the three largest logits, the targeted DLR of APGD-T at four.
FEWEST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}

SQUARE_ALONE = 0.002  # share of images above which the official code calls Square's own breaks suspicious


@dataclass(frozen=True, kw_only=True)
class AutoAttackConfig:
    """AutoAttack over a number of test images, in chunks that can run anywhere and be resumed."""

    version: Version = "standard"
    """Set of attacks: standard (claims), plus (more attacks), rand (for models that draw random numbers), custom."""
    attacks: tuple[str, ...] = ()
    """The attacks of the custom version in order, each with the settings of the standard one: apgd-ce, apgd-dlr,
    apgd-t, fab, fab-t, square."""
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
        unknown = [name for name in self.attacks if name not in ATTACKS]
        if unknown or len(set(self.attacks)) < len(self.attacks) or (self.version == "custom") != bool(self.attacks):
            raise ValueError(
                f"evaluation.attacks are {', '.join(self.attacks) or 'none'} with version {self.version!r}; version "
                f"custom takes some of {', '.join(ATTACKS)}, each once, and the others bring their own"
            )
        for name in ("images", "chunk", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; it must be at least 1")


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
    Raises ValueError for a model with too few classes for one of the losses: 3 for DLR, 4 for the targeted one.
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


def square_flag(broken_by: Sequence[str | None]) -> str | None:
    """The official code's warning about Square, over all images: per chunk it would depend on the chunk."""
    alone = sum(attack == "square" for attack in broken_by)
    if alone <= SQUARE_ALONE * len(broken_by):
        return None
    return (
        f"square: {alone} of {len(broken_by)} images were broken by Square alone, which uses no gradients: "
        "the gradients of this model may mislead, and its robust accuracy may be overestimated"
    )


def _official(
    model: nn.Module,
    probe: Float[Tensor, "1 channel height width"],
    threat: ThreatModel,
    config: AutoAttackConfig,
) -> AutoAttack:
    with torch.no_grad():
        classes = model(probe).shape[1]
    official = AutoAttack(
        model,
        norm=threat.norm,
        eps=threat.radius,
        seed=config.seed,
        version="standard" if config.version == "custom" else config.version,
        device=str(probe.device),
    )
    if config.version == "custom":
        official.attacks_to_run = list(config.attacks)  # pyright: ignore[reportAttributeAccessIssue]
    chosen = official.attacks_to_run or ()
    fewest = max(FEWEST_CLASSES.get(attack, 2) for attack in chosen)
    if classes < fewest:
        raise ValueError(
            f"{', '.join(chosen)} need at least {fewest} classes for their losses, and the model has {classes}: "
            "evaluate it with version custom and the attacks apgd-ce, fab and square, or with PGD"
        )
    # The official numbers of targets are for 10 classes; with fewer it would ask for classes that are not there.
    for targeted in (official.apgd_targeted, official.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
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
