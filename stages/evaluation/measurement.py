"""A measurement: any named attack over a number of test images, described so that two equal ones have one name.

>>> Measurement(name="mine", attack=PGDConfig(steps=10), threat=ThreatModel(radius=0.2), images=100, chunk=50).kind
'pgd'
"""

import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from stages.evaluation.accuracy import device_of, evaluating, to_float
from stages.evaluation.attacks import Attack, run_attack
from stages.evaluation.autoattack import AutoAttackConfig, attack_chunk
from stages.evaluation.bpda import BPDAConfig, bpda_attack
from stages.evaluation.classical import ClassicalConfig, classical_attack
from stages.evaluation.pgd import PGDConfig, pgd
from stages.evaluation.verdict import ChunkVerdict
from stages.fingerprint import array_fingerprint, weights_fingerprint
from stages.rap.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class FunctionConfig:
    """An attack of one's own, as `function_attack` finds it."""

    path: str
    """module:function"""
    source: str
    """sha256 of the source that it stands in, so that a changed attack is run again."""
    batch: int = 128
    """Images that it is given together."""


AttackConfig = AutoAttackConfig | PGDConfig | ClassicalConfig | BPDAConfig | FunctionConfig
KINDS: dict[type, str] = {
    AutoAttackConfig: "autoattack",
    PGDConfig: "pgd",
    ClassicalConfig: "classical",
    BPDAConfig: "bpda",
    FunctionConfig: "function",
}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """An attack, the ball in which it counts, and how many images of the fixed random order it gets."""

    name: str
    attack: AttackConfig
    threat: ThreatModel
    images: int
    chunk: int
    """Images of an evaluation chunk, which is attacked, recorded and resumed as a whole."""

    def __post_init__(self) -> None:
        for name in ("images", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.name}: {name} is {getattr(self, name)}; it must be at least 1")

    @property
    def kind(self) -> str:
        """The kind of the attack, under which its receipts are kept."""
        return kind_of(self.attack)


def kind_of(attack: AttackConfig) -> str:
    """The kind of an attack, such as "autoattack"."""
    return next(kind for config, kind in KINDS.items() if isinstance(attack, config))


def identity(attack: AttackConfig) -> dict[str, object]:
    """What of an attack decides a chunk's verdict: not how many other chunks there are."""
    if isinstance(attack, AutoAttackConfig):
        return {
            "version": attack.version,
            "attacks": list(attack.attacks),
            "batch": attack.batch,
            "seed": attack.seed,
        }
    return asdict(attack)


def attack_images(
    attack: AttackConfig,
    model: nn.Module,
    images: UInt8[Tensor, "image channel height width"],
    labels: Int64[Tensor, " image"],
    rows: Int64[np.ndarray, " image"],
    threat: ThreatModel,
    *,
    function: Attack | None = None,
) -> ChunkVerdict:
    """What an attack does to each image, verified. ``rows``, in the data set, key the random starts.

    ``function`` is that of a FunctionConfig.
    """
    if isinstance(attack, AutoAttackConfig):
        return attack_chunk(model, images, labels, threat, config=attack)
    if isinstance(attack, FunctionConfig):
        if function is None:
            raise ValueError(f"{attack.path} was named but not given: pass the function that function_attack found")
        return run_attack(attack.path, function, model, images, labels, threat, batch=attack.batch).verdict
    if isinstance(attack, ClassicalConfig):
        run = classical_attack(attack)
        return run_attack(attack.name, run, model, images, labels, threat, batch=attack.batch).verdict
    # These take their batches, and keys for each row, themselves.
    name, run = (
        ("pgd", _pgd(attack, rows)) if isinstance(attack, PGDConfig) else (attack.name, bpda_attack(attack, rows))
    )
    return run_attack(name, run, model, images, labels, threat, batch=len(images)).verdict


def _pgd(config: PGDConfig, rows: Int64[np.ndarray, " image"]) -> Attack:
    return lambda model, images, labels, threat: pgd(model, images, labels, threat, config=config, rows=rows)[0]


def function_attack(given: str | Attack) -> tuple[FunctionConfig, Attack]:
    """An attack of one's own by "module:function", or the function itself, and what names it.

    Its name holds the source of its module (of the function alone, where it was typed into a notebook), so that
    a changed attack is run again. Raises ValueError where it cannot be imported, called with (model, images, labels,
    threat), or has no source.
    """
    function = _import(given) if isinstance(given, str) else given
    path = given if isinstance(given, str) else f"{function.__module__}:{getattr(function, '__qualname__', 'attack')}"
    try:
        inspect.signature(function).bind("model", "images", "labels", "threat")
    except TypeError as error:
        raise ValueError(
            f"attack {path} must take (model, images, labels, threat) and return images of the same shape; {error}"
        ) from error
    return FunctionConfig(path=path, source=_source(function, path)), function


def _import(path: str) -> Callable[..., Tensor]:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"attack {path!r} cannot be imported ({error}): name an importable module, from the working directory or "
            "installed, and a function in it, as in my_package.attacks:follow_the_margin"
        ) from error


def _source(function: Callable[..., Tensor], path: str) -> str:
    try:
        file = inspect.getsourcefile(function)
        text = Path(file).read_text() if file and Path(file).is_file() else inspect.getsource(function)
    except (TypeError, OSError) as error:
        raise ValueError(
            f"attack {path} has no source by which its verdicts could be told from those of a changed one: write it "
            "as a function in a module"
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def model_identity(model: nn.Module, images: UInt8[Tensor, "image channel height width"]) -> dict[str, object]:
    """What names a model: its structure, its weights, and how it answers a few images, in value and in gradient.

    Two models that agree in all of it are one to an attack, wherever they were loaded from. Call it with one CPU
    thread, as the last bits depend on their number.
    """
    inputs = to_float(images).to(device_of(model)).requires_grad_(True)
    with evaluating(model), torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        logits = model(inputs)
        gradient = torch.zeros_like(inputs)
        if logits.requires_grad:
            (found,) = torch.autograd.grad(logits.logsumexp(1).sum(), inputs, allow_unused=True)
            gradient = gradient if found is None else found
    return {
        "structure": repr(model),
        "weights": weights_fingerprint(model.state_dict()),
        "answers": array_fingerprint(logits.detach().cpu().numpy(), gradient.cpu().numpy()),
    }
