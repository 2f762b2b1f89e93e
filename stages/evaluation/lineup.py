"""Which of AutoAttack's attacks run on a model, and by what name their result goes.

Only the standard version on its own parameters is called AutoAttack standard. Some attacks have no loss for few
classes, and the official code of Square runs on some sizes of images only: without them the others run, under their
own names.

>>> lineup("standard", (), "Linf", classes=10, shape=(1, 8, 8)).name
'AutoAttack standard'
>>> lineup("standard", (), "L2", classes=4, shape=(1, 12, 12)).name
'APGD-CE, APGD-T (3 targets), FAB-T (3 targets)'
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from pyautoattack import AutoAttack
from pyautoattack.square import SquareAttack
from torch import nn

from stages.rap.threat import Norm, ThreatModel

Version = Literal["standard", "plus", "rand", "custom"]
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
# DLR looks at the three largest logits, the targeted DLR of APGD-T at four; with two classes there is one target.
FEWEST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4, "fab-t": 3}
FULL_TARGETS = 9  # of the official numbers' ten classes, all but the right one
STAND_INS = {"apgd-t": "apgd-dlr", "fab-t": "fab"}
"""The untargeted attack in place of a targeted one, where the classes are too few for that."""


@dataclass(frozen=True, kw_only=True)
class Lineup:
    """The attacks that run, in their order, on the official settings of a version."""

    version: Version
    attacks: tuple[str, ...]
    settings: tuple[dict[str, int], ...]
    """Of each attack: iterations (Square's are its queries), restarts, and where there are any, targets and samples."""
    classes: int
    complete: bool
    """All attacks of the version, with all of their targets."""
    without_square: tuple[int, int] | None
    """The height and width on which Square, which the version has, does not run."""

    @property
    def is_standard(self) -> bool:
        """Whether this is what AutoAttack standard means, which others' figures are."""
        return self.version == "standard" and self.complete

    @property
    def name(self) -> str:
        """Such as "AutoAttack standard", or else the attacks one by one."""
        if self.complete and self.version != "custom":
            return f"AutoAttack {self.version}"
        return ", ".join(map(_name, self.attacks, self.settings))

    @property
    def flags(self) -> tuple[str, ...]:
        """What is missing for another reason than that it does not exist."""
        if self.without_square is None:
            return ()
        height, width = self.without_square
        return (
            f"Square did not run: its official code fails on images of {height} x {width} in L2 and L1, so no search "
            "without gradients was made",
        )

    def as_json(self) -> dict[str, object]:
        """As it stands in results and receipts."""
        return {
            "name": self.name,
            "standard": self.is_standard,
            "version": self.version,
            "attacks": dict(zip(self.attacks, self.settings, strict=True)),
            "classes": self.classes,
        }


def lineup(
    version: Version, attacks: tuple[str, ...], norm: Norm, *, classes: int, shape: tuple[int, int, int]
) -> Lineup:
    """What of a version, or of the custom one's ``attacks``, runs on a model of so many classes and images of a shape.

    Raises ValueError for fewer than 2 classes, and where a custom attack does not exist for the model.
    """
    if classes < 2:
        raise ValueError(f"the model has {classes} class: an attack needs another one, so at least 2")
    official = official_attack(nn.Identity(), version, attacks, ThreatModel(norm=norm, radius=1.0))
    named = tuple(official.attacks_to_run or ())
    found = [_defined(each, classes) for each in named]
    no_square = "square" in named and not square_runs(norm, shape)
    runs = tuple(each for each in dict.fromkeys(found) if each is not None and not (no_square and each == "square"))
    if version == "custom" and runs != named:
        raise ValueError(
            f"{', '.join(_label(each) for each in named if each not in runs)} cannot run on {classes} classes and "
            f"images of {shape[1]} x {shape[2]} in {norm}; of AutoAttack's attacks these can: "
            f"{', '.join(each for each in ATTACKS if _runs(each, classes, norm, shape))}"
        )
    whole = [_settings(official, each) for each in named]
    limit_targets(official, classes)
    settings = [_settings(official, each) for each in runs]
    return Lineup(
        version=version,
        attacks=runs,
        settings=tuple(settings),
        classes=classes,
        complete=(runs, settings) == (named, whole),
        without_square=shape[1:] if no_square else None,
    )


def official_attack(
    model: nn.Module,
    version: Version,
    attacks: tuple[str, ...],
    threat: ThreatModel,
    *,
    seed: int = 0,
    device: str = "cpu",
) -> AutoAttack:
    """The official object of a version; the custom one has the settings of the standard one."""
    official = AutoAttack(
        model,
        norm=threat.norm,
        eps=threat.radius,
        seed=seed,
        version="standard" if version == "custom" else version,
        device=device,
    )
    if version == "custom":
        official.attacks_to_run = list(attacks)  # pyright: ignore[reportAttributeAccessIssue]
    return official


def limit_targets(official: AutoAttack, classes: int) -> None:
    """The official numbers of targets are for 10 classes; with fewer it would ask for classes that are not there."""
    for targeted in (official.apgd_targeted, official.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)


@cache
def square_runs(norm: Norm, shape: tuple[int, int, int]) -> bool:
    """Whether the official code of Square runs on images of a shape.

    In L2 and L1 it begins with tiles of a fifth of the height, which do not cover every size: it fails below 5 pixels,
    at 12, 14, 18, 19, 24, and where the width does not fit. It is asked by one query, which is enough to see it.
    """
    image, label = torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long)
    square = SquareAttack(_Certain(), norm=norm, eps=0.5, n_queries=1, seed=0, device="cpu")
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            square.perturb(image, label)
    except Exception:  # whatever it is, it would be that in the middle of the work
        return False
    return True


class _Certain(nn.Module):
    """Two classes, of which the first is always right."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([1.0, 0.0]).repeat(len(images), 1)


def _defined(attack: str, classes: int) -> str | None:
    """The attack, or its stand-in, where there are classes enough for its loss."""
    for each in filter(None, (attack, STAND_INS.get(attack))):
        if classes >= FEWEST_CLASSES.get(each, 2):
            return each
    return None


def _runs(attack: str, classes: int, norm: Norm, shape: tuple[int, int, int]) -> bool:
    return classes >= FEWEST_CLASSES.get(attack, 2) and (attack != "square" or square_runs(norm, shape))


def _settings(official: AutoAttack, attack: str) -> dict[str, int]:
    if attack == "square":
        return {"iterations": official.square.n_queries, "restarts": official.square.n_restarts}
    if attack.startswith("fab"):
        # the official code makes one run for each target, whatever the version
        restarts = 1 if attack == "fab-t" else official.fab.n_restarts
        targets = {"targets": official.fab.n_target_classes} if attack == "fab-t" else {}
        return {"iterations": official.fab.n_iter, "restarts": restarts, **targets}
    apgd = official.apgd_targeted if attack == "apgd-t" else official.apgd
    targets = {"targets": official.apgd_targeted.n_target_classes} if attack == "apgd-t" else {}
    samples = {"samples": apgd.eot_iter} if apgd.eot_iter > 1 else {}
    return {"iterations": apgd.n_iter, "restarts": apgd.n_restarts, **targets, **samples}


def _label(attack: str) -> str:
    return "Square" if attack == "square" else attack.upper()


def _name(attack: str, settings: dict[str, int]) -> str:
    """The attack with what of its settings is not that of the standard version for 10 classes."""
    told = [f"{settings[key]} {key}" for key in ("restarts", "samples") if settings.get(key, 1) > 1]
    if settings.get("targets", FULL_TARGETS) < FULL_TARGETS:
        count = settings["targets"]
        told.append(f"{count} target{'s' if count > 1 else ''}")
    return f"{_label(attack)} ({', '.join(told)})" if told else _label(attack)
