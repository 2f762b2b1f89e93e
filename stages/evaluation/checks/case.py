"""What is examined, at which size, and how checks attack it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from stages.evaluation.accuracy import clean_mask, device_of, evaluating, to_float
from stages.evaluation.attacks import Attack, AttackResult, run_attack, worst_case
from stages.evaluation.checks.explanations import Ablations, SelectionFacts, VanillaTraining
from stages.evaluation.evidence import Check, Curve
from stages.evaluation.pgd import PGDConfig, direction, draw_starts, pgd, project
from stages.rap import losses
from stages.rap.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class CheckSize:
    """How much the checks do. The default takes a minute or so for an adapter on 8x8 digits on one core."""

    images: int = 64
    """Images on which attacks are run. 64 show a share of 5 % with a chance of 96 %."""
    steps: int = 100
    """Steps of the long attacks; check 4 takes twice as many."""
    short_steps: int = 20
    """Steps of the short attacks, on which curves rest."""
    restarts: int = 3
    """Restarts of the strongest PGD of check 3."""
    queries: int = 500
    """Queries of Square, where AutoAttack's verdicts are not given."""
    draws: int = 100
    """Random points of the ball that are tried on each image."""
    radii: int = 4
    """Points of the curve from the radius to the largest that means something; two smaller ones come before them."""
    gradient_images: int = 32
    """Images whose gradients are compared with differences, each in `directions` random directions."""
    directions: int = 4
    """Random directions an image in the gradient check."""
    binarized: int = 32
    """Images of the binarization test."""
    inner: int = 256
    """Random points inside of the ball that a binarized readout must tell from one on its border."""
    samples: int = 8
    """Draws over which a randomised model is averaged, and how often an adversary is submitted to it again."""
    batch: int = 128
    """Images attacked together."""
    seed: int = 0
    """Seed of all random starts, points and directions."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = {"seed": 0, "radii": 2}.get(name, 1)
            if value < least:
                raise ValueError(f"checks.{name} is {value}; it must be at least {least}")
        if self.short_steps >= self.steps:
            raise ValueError(
                f"checks.short_steps is {self.short_steps} and checks.steps {self.steps}: the short attack must have "
                "fewer steps than the long one"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Examined:
    """A model and everything that is known about it. What is optional makes checks "not applicable" where it lacks.

    ``images`` are uint8 and the first of them are attacked; put no image there that decided anything before.
    ``rows`` are their rows in the data set, and key all random starts.

    Raises ValueError where lengths do not fit.
    """

    model: nn.Module
    """Images [image, channel, height, width] in [0, 1] to logits [image, class]."""
    images: UInt8[Tensor, "image channel height width"]
    labels: Int64[Tensor, " image"]
    rows: Int64[np.ndarray, " image"]
    threat: ThreatModel
    undefended: nn.Module | None = None
    """The classifier without the defence."""
    others: tuple[nn.Module, ...] = ()
    """Classifiers of the same task that the defence has never met, such as those of other seeds."""
    earlier: tuple[AttackResult, ...] = ()
    """What other attacks did to the first images, as many as each covers. They count in the headline."""
    broken_by: tuple[str | None, ...] = ()
    """AutoAttack's verdicts on the first images: the attack that broke each, "clean", or None where it stood."""
    flags: tuple[str, ...] = ()
    """AutoAttack's warnings."""
    ablations: Ablations | None = None
    vanilla: VanillaTraining | None = None
    selection: SelectionFacts | None = None

    def __post_init__(self) -> None:
        count = len(self.images)
        if not count or len(self.labels) != count or len(self.rows) != count:
            raise ValueError(
                f"there are {count} images, {len(self.labels)} labels and {len(self.rows)} rows: pass one of each for "
                "every image, and at least 1 image"
            )
        longest = max([len(self.broken_by), *(len(result.robust) for result in self.earlier)])
        if longest > count:
            raise ValueError(f"earlier verdicts cover {longest} images, and there are {count}: pass those images too")

    def first(self, count: int) -> "Examined":
        """The same model on the first images only."""
        return replace(
            self,
            images=self.images[:count],
            labels=self.labels[:count],
            rows=self.rows[:count],
            earlier=tuple(_first(result, count) for result in self.earlier),
            broken_by=self.broken_by[:count],
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A check, the curves behind it, and the attacks on the model in its own ball, which count in the headline."""

    check: Check
    curves: tuple[Curve, ...] = ()
    results: tuple[AttackResult, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class WhiteBox:
    """Attacks through the model's own gradient, the plain evaluation whose soundness is in question."""

    fgsm: AttackResult
    short: AttackResult
    long: AttackResult
    restarted: AttackResult
    doubled: AttackResult

    @property
    def results(self) -> tuple[AttackResult, ...]:
        return self.fgsm, self.short, self.long, self.restarted, self.doubled


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the model answers, apart from what it answers."""

    random: bool
    """It answers the same images differently."""
    batch_dependent: bool
    """Its answer for an image depends on the images beside it."""
    adaptive: bool
    """It takes gradients while it answers."""
    difference: float
    """The largest difference of two answers for one image, as a share of the largest logit."""

    @property
    def deterministic(self) -> bool:
        """True for a fixed function of each image."""
        return not (self.random or self.batch_dependent)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """What every check is given: the model on the images that are attacked, and what all checks lean on."""

    examined: Examined
    size: CheckSize
    behaviour: Behaviour
    clean: Bool[np.ndarray, " image"]
    white_box: WhiteBox
    square: AttackResult
    broken_by: tuple[str | None, ...] = ()
    """AutoAttack's verdicts, also on images beyond those that are attacked here."""
    again: AttackResult | None = None
    """Of a randomised model: the long attack a second time, from other starts; what luck alone breaks."""
    standing: Bool[np.ndarray, " image"] = field(init=False)
    """True where no attack through the model's own gradient broke the image, nor one that was run before."""

    def __post_init__(self) -> None:
        count = len(self.clean)
        before = [_padded(result.robust, count) for result in self.examined.earlier]
        own = [by is None or by == "square" for by in self.examined.broken_by]
        masks = [self.clean, *(result.robust for result in self.white_box.results), *before]
        object.__setattr__(self, "standing", worst_case([*masks, _padded(np.array(own, dtype=bool), count)]))

    @property
    def images(self) -> int:
        return len(self.clean)

    @property
    def square_alone(self) -> tuple[int, int]:
        """How many images stood every gradient and fell to Square, here or in AutoAttack; of how many."""
        here = set(np.flatnonzero(self.standing & ~self.square.robust).tolist())
        there = {place for place, by in enumerate(self.broken_by) if by == "square"}
        return len(here | there), max(self.images, len(self.broken_by))

    def run_pgd(
        self,
        config: PGDConfig,
        *,
        name: str | None = None,
        through: nn.Module | None = None,
        threat: ThreatModel | None = None,
    ) -> AttackResult:
        """`run_pgd` on this model; to the end where one wrong answer says little, since the model is random."""
        to_the_end = self.behaviour.random
        return run_pgd(
            self.examined, self.size, config, name=name, through=through, threat=threat, to_the_end=to_the_end
        )


def attack_examined(
    examined: Examined,
    size: CheckSize,
    name: str,
    attack: Callable[[slice], Attack],
    *,
    threat: ThreatModel | None = None,
) -> AttackResult:
    """`run_attack` with attacks that know which images they are given, in the examined ball or another.

    ``attack`` makes the attack of a batch from its place among the images.
    """
    parts = []
    for first in range(0, len(examined.images), size.batch):
        part = slice(first, first + size.batch)
        parts.append(
            run_attack(
                name,
                attack(part),
                examined.model,
                examined.images[part],
                examined.labels[part],
                threat or examined.threat,
                batch=size.batch,
            )
        )
    return AttackResult(
        name=name,
        robust=np.concatenate([part.robust for part in parts]),
        adversarial=np.concatenate([part.adversarial for part in parts]),
        distance=np.concatenate([part.distance for part in parts]),
        refused=sum(part.refused for part in parts),
        seconds=sum(part.seconds for part in parts),
    )


def run_pgd(
    examined: Examined,
    size: CheckSize,
    config: PGDConfig,
    *,
    name: str | None = None,
    through: nn.Module | None = None,
    threat: ThreatModel | None = None,
    to_the_end: bool = False,
) -> AttackResult:
    """PGD on the examined images, verified on the model; ``through`` gives the gradients in its place.

    ``to_the_end`` goes on where the model is fooled already, so that it is still fooled when it draws other numbers.
    """

    def attack(part: slice) -> Attack:
        rows, run = examined.rows[part], climb if to_the_end else _first_wrong
        return lambda attacked, images, labels, ball: run(
            through or attacked, images, labels, ball, config=config, rows=rows
        )

    return attack_examined(examined, size, name or name_of(config), attack, threat=threat)


def name_of(config: PGDConfig) -> str:
    """Such as "PGD-100 x 3"."""
    return f"PGD-{config.steps}" + (f" x {config.restarts}" if config.restarts > 1 else "")


def attack_white_box(examined: Examined, size: CheckSize, *, to_the_end: bool = False) -> WhiteBox:
    """FGSM and PGD with cross-entropy, the attacks of the judge and of most papers, at several strengths."""
    long = PGDConfig(steps=size.steps, seed=size.seed)
    fgsm = PGDConfig(steps=1, step_size=examined.threat.radius, random_start=False)

    def run(config: PGDConfig, name: str | None = None) -> AttackResult:
        return run_pgd(examined, size, config, name=name, to_the_end=to_the_end)

    return WhiteBox(
        fgsm=run(fgsm, "FGSM"),
        short=run(replace(long, steps=size.short_steps)),
        long=run(long),
        restarted=run(replace(long, restarts=size.restarts)),
        doubled=run(replace(long, steps=2 * size.steps)),
    )


def climb(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    *,
    config: PGDConfig,
    rows: Int64[np.ndarray, " image"],
) -> Float[Tensor, "image channel height width"]:
    """The last state of the first run of PGD whose last state fools the model, or of the last run.

    Unlike those of `pgd`, such states are deep in the wrong class, as transfer, rounding, repeated submission and
    models that draw random numbers need them.
    """
    states, fooled = images, torch.zeros_like(labels, dtype=torch.bool)
    for restart in range(config.restarts):
        state = images
        if config.random_start:
            state = draw_starts(images, threat, rows=rows, restart=restart, seed=config.seed)
        for _ in range(config.steps):
            step = config.step(threat) * direction(loss_gradient(model, state, labels), threat)
            state = project(state + step, images, threat)
        states = torch.where(fooled[:, None, None, None], states, state)
        with torch.no_grad():
            fooled |= model(state).argmax(1) != labels
    return states


def ascend(
    model: nn.Module, examined: Examined, size: CheckSize, config: PGDConfig
) -> Float[Tensor, "image channel height width"]:
    """`climb` on a model, for each examined image; the states are on the CPU."""
    device, states = device_of(model), []
    with evaluating(model):
        for part in torch.arange(len(examined.images)).split(size.batch):
            clean, labels = to_float(examined.images[part]).to(device), examined.labels[part].to(device)
            rows = examined.rows[part.numpy()]
            states.append(climb(model, clean, labels, examined.threat, config=config, rows=rows).cpu())
    return torch.cat(states)


def submit(
    examined: Examined, size: CheckSize, name: str, states: Float[Tensor, "image channel height width"]
) -> AttackResult:
    """What images that were made elsewhere do to the examined model, verified."""
    return attack_examined(
        examined, size, name, lambda part: lambda model, images, labels, threat: states[part].to(images)
    )


def loss_gradient(
    model: nn.Module, states: Float[Tensor, "image channel height width"], labels: Int64[Tensor, " image"]
) -> Float[Tensor, "image channel height width"]:
    """The gradient of the cross-entropy by each image; of a model on which it does not depend, zero."""
    leaf = states.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = losses.cross_entropy(model(leaf), labels).sum()
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True, materialize_grads=True)
    return gradient


def on_device(examined: Examined) -> tuple[Float[Tensor, "image channel height width"], Int64[Tensor, " image"]]:
    """The float images and their labels where the model is."""
    device = device_of(examined.model)
    return to_float(examined.images).to(device), examined.labels.to(device)


def clean_of(examined: Examined, size: CheckSize, model: nn.Module | None = None) -> Bool[np.ndarray, " image"]:
    """True where the model, or another, classifies the image itself correctly."""
    return clean_mask(model or examined.model, examined.images, examined.labels, batch=size.batch)


@contextmanager
def fixed_seed(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's random numbers from a seed inside, and as they would have been outside."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _first_wrong(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    threat: ThreatModel,
    *,
    config: PGDConfig,
    rows: Int64[np.ndarray, " image"],
) -> Float[Tensor, "image channel height width"]:
    return pgd(model, images, labels, threat, config=config, rows=rows)[0]


def _first(result: AttackResult, count: int) -> AttackResult:
    return replace(
        result,
        robust=result.robust[:count],
        adversarial=result.adversarial[:count],
        distance=result.distance[:count],
    )


def _padded(mask: Bool[np.ndarray, " covered"], count: int) -> Bool[np.ndarray, " image"]:
    """The mask on all images: what was not covered stood."""
    return np.concatenate([mask, np.ones(count - len(mask), dtype=bool)])
