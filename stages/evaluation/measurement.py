"""A measurement: any named attack over a number of test images, described so that two equal ones have one name.

>>> Measurement(name="mine", attack=PGDConfig(steps=10), threat=ThreatModel(radius=0.2), images=100, chunk=50).kind
'pgd'
"""

import functools
import inspect
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from stages.data.splits import Split
from stages.evaluation.accuracy import to_float
from stages.evaluation.attacks import Attack, NamedAttack, run_attack
from stages.evaluation.autoattack import AutoAttackConfig, Kept, attack_chunk, lineup_on
from stages.evaluation.bpda import BPDAConfig, bpda_attack
from stages.evaluation.classical import ClassicalConfig, classical_attack
from stages.evaluation.isolation import isolated
from stages.evaluation.pgd import PGDConfig, pgd
from stages.evaluation.verdict import AttackError, ChunkVerdict, ask
from stages.identity import UnnameableError, object_fingerprint
from stages.named import imported
from stages.rap.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class FunctionConfig:
    """An attack of one's own, as `function_attacks` finds it."""

    path: str
    """module:function, and the beginning of ``code`` where another attack has the same."""
    code: str
    """`object_fingerprint` of the function: of its code and all that it refers to."""
    batch: int = 128
    """Images that it is given together."""
    doubt: str = ""
    """Why the function cannot be recognised, where that is so; ``code`` is then a random one."""

    @property
    def name(self) -> str:
        """The attack in a table."""
        return self.path


EXAMPLE = "a function in it, as in my_package.attacks:follow_the_margin"
CHANGED = (
    "the model answers images as they are otherwise after the attack than before it: its answers change from call to "
    "call, so no share of images that remain robust can be said of it; look for what its forward counts, keeps or "
    "draws anew"
)
TIED = 0.05  # of a chunk's images, or one of them: more are not of two classes so equal that rounding decides
MeasuredAttack = AutoAttackConfig | PGDConfig | ClassicalConfig | BPDAConfig | FunctionConfig
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
    attack: MeasuredAttack
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


def kind_of(attack: MeasuredAttack) -> str:
    """The kind of an attack, such as "autoattack"."""
    return next(kind for config, kind in KINDS.items() if isinstance(attack, config))


def identity(attack: MeasuredAttack) -> dict[str, object]:
    """What of an attack decides a chunk's verdict: not how many other chunks there are."""
    if isinstance(attack, AutoAttackConfig):
        return {
            "version": attack.version,
            "attacks": list(attack.attacks),
            "batch": attack.batch,
            "seed": attack.seed,
            "code": version("pyautoattack"),
        }
    if isinstance(attack, ClassicalConfig):
        return {**asdict(attack), "code": version("foolbox")}
    return asdict(attack)


def described(
    attack: MeasuredAttack, model: nn.Module, images: UInt8[Tensor, "image channel height width"], threat: ThreatModel
) -> dict[str, object]:
    """The attack that a model gets, with all that decides what may be said of its result, as JSON with its name."""
    if isinstance(attack, AutoAttackConfig):
        known = lineup_on(model, to_float(images[:1]), threat, attack).as_json()
        return {"kind": kind_of(attack), **known, "seed": attack.seed, "batch": attack.batch}
    return {"kind": kind_of(attack), "name": attack.name, **identity(attack)}


def attack_images(
    attack: MeasuredAttack,
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    *,
    function: Attack | None = None,
    kept: Kept | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> ChunkVerdict:
    """What an attack does to each image of a split, verified. The rows in the data set key the random starts.

    ``function`` is that of a FunctionConfig; in ``kept`` lies what AutoAttack's first attacks found, and ``progress``
    gets a line for each of them. The model is asked
    for the images once more at the end, and where it is not the one that was attacked, AttackError is raised, or for
    so few images that rounding may do it a flag says so; not of one that is attacked as randomised, which may answer
    otherwise.
    """
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    if isinstance(attack, AutoAttackConfig):
        verdict = attack_chunk(model, images, labels, threat, config=attack, kept=kept, progress=progress)
    else:
        runnable = _runnable(attack, split.rows, function)
        verdict = run_attack(runnable, model, images, labels, threat, batch=attack.batch).verdict
    if isinstance(attack, AutoAttackConfig) and attack.version == "rand":
        return verdict
    right = ~ask(model, to_float(images), labels.cpu(), batch=attack.batch)
    changed = int((right != verdict.clean).sum())
    if changed > max(1, TIED * len(images)):
        raise AttackError(f"{kind_of(attack)}, {changed} of {len(images)} images: {CHANGED}")
    return replace(verdict, flags=(*verdict.flags, CHANGED)) if changed else verdict


def _runnable(
    attack: PGDConfig | BPDAConfig | ClassicalConfig | FunctionConfig,
    rows: Int64[np.ndarray, " image"],
    function: Attack | None,
) -> NamedAttack:
    if isinstance(attack, FunctionConfig):
        if function is None:
            raise ValueError(f"{attack.path} was named but not given: pass the function that function_attacks found")
        return NamedAttack(attack.path, isolated(attack.path, function))
    if isinstance(attack, ClassicalConfig):
        return NamedAttack(attack.name, classical_attack(attack))
    run = _pgd(attack, rows) if isinstance(attack, PGDConfig) else bpda_attack(attack, rows)
    return NamedAttack(attack.name, run, is_batched=True)


def _pgd(config: PGDConfig, rows: Int64[np.ndarray, " image"]) -> Attack:
    return lambda model, images, labels, threat: pgd(model, images, labels, threat, config=config, rows=rows)[0]


def function_attacks(given: Sequence[str | Attack]) -> list[tuple[FunctionConfig, Attack]]:
    """Attacks of one's own by "module:function", or the functions themselves, and what names each.

    What is named by its code, and all that this refers to, is run again when any of it has changed. Raises ValueError
    where one cannot be imported, called with (model, images, labels, threat), or is given twice.
    """
    found = [_function_attack(each) for each in given]
    paths = [config.path for config, _ in found]
    named = [
        (replace(config, path=f"{config.path} [{config.code[:6]}]") if paths.count(config.path) > 1 else config, attack)
        for config, attack in found
    ]
    paths = [config.path for config, _ in named]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ValueError(f"attack {twice[0]} is given twice: leave one of them out")
    return named


def _function_attack(given: str | Attack) -> tuple[FunctionConfig, Attack]:
    function: Any = imported(given, "attack", EXAMPLE) if isinstance(given, str) else given
    path = given if isinstance(given, str) else _path_of(given)
    try:
        inspect.signature(function).bind("model", "images", "labels", "threat")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"attack {path} must take (model, images, labels, threat) and return images of the same shape; {error}"
        ) from error
    try:
        return FunctionConfig(path=path, code=object_fingerprint(function)), function
    except UnnameableError as error:
        return FunctionConfig(path=path, code=secrets.token_hex(16), doubt=str(error)), function


def _path_of(function: Attack) -> str:
    """module:function, of an object that can be called module:class."""
    inner = function.func if isinstance(function, functools.partial) else function
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{named.__module__}:{named.__qualname__}"
