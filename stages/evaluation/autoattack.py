"""AutoAttack (Croce & Hein 2020) on one evaluation chunk, by its official code.

The official code does not say which of its attacks broke an image. Here they run one after the other,
each on the images that are left, with the very batches and seeds of one call of the standard version:
the verdicts are the same.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from pyautoattack import AutoAttack, checks
from torch import Tensor, nn

from stages.evaluation.accuracy import device_of, evaluating, to_float
from stages.evaluation.finite import FiniteGradients
from stages.evaluation.lineup import ATTACKS, Lineup, Version, limit_targets, lineup, official_attack
from stages.evaluation.verdict import AttackError, ChunkVerdict, ask, distances, unanswered, verify
from stages.rap.threat import ThreatModel
from stages.settings import check_settings

NOT_FINITE = (
    "gradients were NaN or infinite on the way: NaN was taken for 0, and infinity for the image's largest, which leads "
    "less far than a gradient should"
)
NO_ANSWER = "the model returned NaN or infinity for images as they are, which count as misclassified where it is NaN"
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
        check_settings(self, "evaluation")
        unknown = [name for name in self.attacks if name not in ATTACKS]
        if unknown or len(set(self.attacks)) < len(self.attacks) or (self.version == "custom") != bool(self.attacks):
            raise ValueError(
                f"evaluation.attacks are {', '.join(self.attacks) or 'none'} with version {self.version!r}; version "
                f"custom takes some of {', '.join(ATTACKS)}, each once, and the others bring their own"
            )
        for name, least in (("images", 1), ("chunk", 1), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; it must be at least {least}")


@runtime_checkable
class Kept(Protocol):
    """What the first attacks of a chunk found, by their names in order: an attack that fails takes nothing with it."""

    def get(self, attacks: tuple[str, ...], /) -> ChunkVerdict | None: ...

    def __setitem__(self, attacks: tuple[str, ...], verdict: ChunkVerdict, /) -> None: ...


def attack_chunk(
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    *,
    config: AutoAttackConfig,
    kept: Kept | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> ChunkVerdict:
    """The official AutoAttack on one chunk, verified; the same bits for the same seed, device and threads.

    ``kept`` is given the verdict after each attack, and asked where to go on; ``progress`` gets a line before each.
    Leaves the model's mode and gradients,
    the random state of PyTorch and the logger as they were.
    Raises ValueError as `lineup` does, and AttackError where an attack itself fails.
    """
    device, labels, clean = device_of(model), labels.cpu(), to_float(images)
    kept = {} if kept is None else kept
    with evaluating(model), _official_code(device) as flags:
        attacked, plan = FiniteGradients(model), lineup_on(model, clean, threat, config)
        official = official_attack(
            attacked, config.version, config.attacks, threat, seed=config.seed, device=str(device)
        )
        limit_targets(official, plan.classes)
        begun = (kept.get(plan.attacks[:count]) for count in range(len(plan.attacks), 0, -1))
        verdict = next(filter(None, begun), None) or _unattacked(model, clean, labels, plan, config)
        for flag in verdict.flags:
            flags.take(flag)
        for attack in plan.attacks[len(verdict.seconds) :]:
            if not verdict.robust.any():
                break
            progress(f"{attack}, {verdict.robust.sum()} of {len(labels)} images are left")
            verdict = _attack_remaining(official, attack, verdict, clean, labels, threat, config)
            if attacked.met:
                flags.take(NOT_FINITE)
            verdict = replace(verdict, flags=flags.messages)
            kept[tuple(verdict.seconds)] = verdict
    return verdict


def lineup_on(
    model: nn.Module, clean: Float[Tensor, "image channel height width"], threat: ThreatModel, config: AutoAttackConfig
) -> Lineup:
    """Which attacks run on a model, of which a forward pass tells the number of classes."""
    with torch.no_grad(), evaluating(model):
        classes = model(clean[:1].to(device_of(model))).shape[1]
    channels, height, width = clean.shape[1:]
    return lineup(config.version, config.attacks, threat.norm, classes=classes, shape=(channels, height, width))


def _unattacked(
    model: nn.Module,
    clean: Float[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    plan: Lineup,
    config: AutoAttackConfig,
) -> ChunkVerdict:
    wrong = ask(model, clean, labels, batch=config.batch)
    silent = (NO_ANSWER,) if unanswered(model, clean, batch=config.batch) else ()
    return ChunkVerdict(
        broken_by=tuple("clean" if each else None for each in wrong),
        adversarial=clean.numpy(),
        distance=np.zeros(len(clean)),
        flags=(*plan.flags, *silent),
        seconds={},
    )


def _attack_remaining(
    official: AutoAttack,
    attack: str,
    verdict: ChunkVerdict,
    clean: Float[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    config: AutoAttackConfig,
) -> ChunkVerdict:
    """The verdict after one more attack, on the images that the others left."""
    left, began = np.flatnonzero(verdict.robust), time.perf_counter()
    official.attacks_to_run = [attack]  # pyright: ignore[reportAttributeAccessIssue]
    try:
        found, predicted = official.run_standard_evaluation(clean[left], labels[left], batch_size=config.batch)
    except torch.OutOfMemoryError:  # whose remedy is another
        raise
    except Exception as error:
        raise AttackError(
            f"AutoAttack's {attack} failed on images of shape {list(clean.shape[1:])} in {threat.norm}: "
            f"{type(error).__name__}: {error}. What the attacks before it found is kept; leave it out with the version "
            "custom and the other attacks"
        ) from error
    verified = verify(official.model, found, clean[left], labels[left], threat, batch=config.batch)
    claimed = (predicted != labels[left]).numpy()
    # A random model answers otherwise each time; its answer to the finished images is what the official code counts.
    broken = claimed & (~verified.refused if config.version == "rand" else verified.broken)
    broken_by, adversarial = list(verdict.broken_by), verdict.adversarial.copy()
    for place, image in zip(left[broken], verified.images.numpy()[broken], strict=True):
        broken_by[place], adversarial[place] = attack, image
    none = int((claimed & ~broken).sum())
    return replace(
        verdict,
        broken_by=tuple(broken_by),
        adversarial=adversarial,
        distance=distances(torch.from_numpy(adversarial), clean, threat.norm),
        seconds={**verdict.seconds, attack: time.perf_counter() - began},
        refused={**verdict.refused, **({attack: none} if none else {})},
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


class _Flags(logging.Handler):
    """Keeps what the official code warns of: of each kind of warning, the one with the largest count."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.funcName == "check_n_classes":  # of losses and targets, which the lineup has decided on
            return
        self.take(record.getMessage().removesuffix(f" See {checks.checks_doc_path} for details."))

    def take(self, message: str) -> None:
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
