"""Plain reporting: checks 1, 14, 16 and 20, which state figures and pass."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stages.evaluation.accuracy import Accuracy, device_of, evaluating, to_float
from stages.evaluation.attacks import AttackResult, worst_case
from stages.evaluation.checks.attacking import ascend, submit
from stages.evaluation.checks.case import Case, Outcome, not_applicable
from stages.evaluation.checks.examined import Examined, clean_of
from stages.evaluation.checks.strength import RADIUS
from stages.evaluation.evidence import Check, Curve
from stages.evaluation.pgd import PGDConfig
from stages.evaluation.verdict import ask
from stages.rap.robust import RobustClassifier
from stages.rap.threat import Norm, ThreatModel

MULTIPLES = (0.75, 1.25, 1.5, 2.0)  # of the radius that the defence was made for; check 5 has 1/4, 1/2 and 1
OTHERS = 4  # points of the curve in the other norm


def check_clean(case: Case) -> Outcome:
    """Check 1: the accuracy without an attack."""
    accuracy = Accuracy.from_mask(case.clean)
    check = Check(
        1,
        "clean accuracy",
        "pass",
        str(accuracy),
        images=case.images,
        says="The share of unattacked images that are classified correctly, with its 95 % interval.",
        evidence={"clean": accuracy.as_json()},
    )
    return Outcome(check=check)


def check_robust_accuracy(
    examined: Examined, clean: Bool[np.ndarray, " image"], results: Sequence[AttackResult], *, covered: int
) -> tuple[Check, Bool[np.ndarray, " image"]]:
    """Check 14: the robust accuracy, the share of images that remain robust to everything that was run on them.

    ``clean`` and the robust accuracy cover all images, ``results`` the first of them, each as many as it has;
    ``covered`` is the number that all checks attacked. An image is only as well tested as the attacks that it met.
    """
    masks = {result.name: result.robust for result in (*examined.earlier, *results)}
    if examined.broken_by:
        masks[examined.autoattack] = np.array([by is None for by in examined.broken_by])
    count = len(clean)
    padded = {name: np.concatenate([mask, np.ones(count - len(mask), dtype=bool)]) for name, mask in masks.items()}
    robust = worst_case([clean, *padded.values()])
    accuracy, inside = Accuracy.from_mask(robust), Accuracy.from_mask(robust[:covered])
    only = {
        name: int((~mask & worst_case([clean, *(other for key, other in padded.items() if key != name)])).sum())
        for name, mask in padded.items()
    }
    says = f"The share of images that remain robust to each of {len(masks)} attacks: the robust accuracy to quote."
    if covered < count:
        says += f" The attacks of the checks were run on the first {covered} of the {count} images."
    check = Check(
        14,
        "robust accuracy (per-image worst case)",
        "pass",
        str(accuracy),
        images=count,
        says=says,
        evidence={
            "worst case": accuracy.as_json(),
            "worst case on the images of all checks": inside.as_json(),
            "attacks": {name: Accuracy.from_mask(mask).as_json() for name, mask in masks.items()},
            "broken by this attack only": only,
        },
    )
    return check, robust


def check_elsewhere(case: Case) -> Outcome:
    """Check 16: the same attack at other radii, in the other norm, on the grid of 1/255, and at other t.

    On the grid: the last states of PGD, rounded toward the clean image, are 8-bit images in the ball. At other t the
    adapter is told that the image has had t attack steps, which only a robust classifier with an adapter knows.
    """
    examined, size = case.examined, case.size
    config = PGDConfig(steps=size.short_steps, seed=size.seed)
    name, threat = f"PGD-{config.steps}", examined.threat
    own = {radius: _pgd_at(case, config, threat.norm, radius) for radius in _own_radii(threat)}
    other: Norm = "L2" if threat.norm == "Linf" else "Linf"
    others = {radius: _pgd_at(case, config, other, radius) for radius in _other_radii(case)}
    gridded = _on_grid(case, config)
    times = _at_other_times(case, config)
    curves = [
        Curve(name=name, x=RADIUS, points=_points(own)),  # which joins that of check 5
        _curve(f"{name}, {other}", f"{other} radius (pixels in [0, 1])", others, case),
    ]
    if times:
        points = tuple((float(t), accuracy) for t, accuracy in times.items())
        curves.append(Curve(name=name, x="t that the adapter is told", points=points))
    off_grid = case.white_box.short
    check = Check(
        16,
        "other radii, norm, grid and t",
        "pass",
        f"{off_grid.name} {100 * off_grid.accuracy.value:.1f} %, on the grid of 1/255 "
        f"{100 * gridded.accuracy.value:.1f} %",
        images=case.images,
        says="How the figure changes where one leaves the setting that the defence was made for.",
        evidence={
            f"{threat.norm} radius": {f"{r:.4g}": result.accuracy.as_json() for r, result in own.items()},
            f"{other} radius": {f"{r:.4g}": result.accuracy.as_json() for r, result in others.items()},
            "off the grid": off_grid.accuracy.as_json(),
            "on the grid": gridded.accuracy.as_json(),
            "t": {str(t): accuracy.as_json() for t, accuracy in times.items()},
        },
    )
    inside = tuple(result for radius, result in own.items() if radius <= threat.radius)
    return Outcome(check=check, curves=tuple(curves), results=(gridded, *inside))


def check_purifier(case: Case) -> Outcome:
    """Check 20: what classifiers that the adapter has never met make of its restored adversaries.

    A purifier gives them back clean images; a hidden classifier writes its verdict into the image, where only the
    classifier that it was trained with reads it.
    """
    model, examined = case.examined.model, case.examined
    purify = getattr(model, "purify", None)
    if purify is None or not examined.others or getattr(model, "adapter", purify) is None:
        reason = "the model does not restore images" if examined.others else "no unseen classifier was given"
        return not_applicable(20, "purifier or classifier", reason)
    config = PGDConfig(steps=case.size.steps, seed=case.size.seed)
    states = ascend(model, examined, case.size, config)
    restored = _purified(model, states, case.size.batch)
    labels = examined.labels
    right = {
        "clean": np.concatenate([clean_of(examined, case.size, other) for other in examined.others]),
        "attacked": _answers(examined.others, states, labels, case.size.batch),
        "restored": _answers(examined.others, restored, labels, case.size.batch),
    }
    own = Accuracy.from_mask(~ask(model, states, labels, batch=case.size.batch))
    shares = {key: float(mask.mean()) for key, mask in right.items()}
    check = Check(
        20,
        "purifier or classifier",
        "pass",
        f"{len(examined.others)} unseen classifiers: clean {100 * shares['clean']:.1f} %, attacked "
        f"{100 * shares['attacked']:.1f} %, restored {100 * shares['restored']:.1f} %; its own, restored {own}",
        images=case.images,
        says="Where unseen classifiers gain as much as its own from the restored images, the adapter purifies; "
        "where they do not, it classifies.",
        evidence={"unseen classifiers": len(examined.others), "its own, restored": own.as_json(), **shares},
    )
    return Outcome(check=check)


def _own_radii(threat: ThreatModel) -> list[float]:
    radii = [threat.radius * factor for factor in MULTIPLES]
    return [radius for radius in radii if threat.norm == "L2" or radius <= 1]


def _other_radii(case: Case) -> list[float]:
    """From the largest ball of the other norm inside of the examined one to the smallest around it."""
    threat, root = case.examined.threat, math.sqrt(case.examined.images[0].numel())
    if threat.norm == "Linf":
        return np.geomspace(threat.radius, threat.radius * root, OTHERS).tolist()
    return np.geomspace(threat.radius / root, min(threat.radius, 1.0), OTHERS).tolist()


def _pgd_at(case: Case, config: PGDConfig, norm: Norm, radius: float) -> AttackResult:
    return case.run_pgd(config, threat=ThreatModel(norm=norm, radius=radius))


def _curve(name: str, x: str, results: dict[float, AttackResult], case: Case) -> Curve:
    clean = (0.0, Accuracy.from_mask(case.clean))
    return Curve(name=name, x=x, points=(clean, *_points(results)))


def _points(results: dict[float, AttackResult]) -> tuple[tuple[float, Accuracy], ...]:
    return tuple((radius, result.accuracy) for radius, result in results.items())


def _on_grid(case: Case, config: PGDConfig) -> AttackResult:
    """PGD's last states as 8-bit images; rounded toward the clean image, which keeps them in the ball."""
    clean = to_float(case.examined.images).double()
    states = ascend(case.examined.model, case.examined, case.size, config).double()
    levels = ((states - clean) * 255 + torch.sign(states - clean) * 1e-3).trunc()  # 1e-3: float32 below a whole level
    gridded = (((clean * 255).round() + levels) / 255).clamp(0, 1).float()
    return submit(case.examined, case.size, f"PGD-{config.steps} on the grid of 1/255", gridded)


def _at_other_times(case: Case, config: PGDConfig) -> dict[int, Accuracy]:
    """Accuracy under PGD by the t that the adapter is told; empty without an adapter or with several reverse steps."""
    model = case.examined.model
    if not isinstance(model, RobustClassifier) or model.adapter is None or len(model.times) > 1:
        return {}
    found = {}
    for t in sorted({1, *(max(1, round(model.steps * share)) for share in (0.25, 0.5, 0.75)), model.steps}):
        with _told(model, t):
            found[t] = case.run_pgd(config).accuracy
    return found


@contextmanager
def _told(model: RobustClassifier, t: int) -> Iterator[None]:
    before = model.steps, model.times
    model.steps, model.times = t, [t]
    try:
        yield
    finally:
        model.steps, model.times = before


def _purified(model: nn.Module, states: Float[Tensor, "image channel height width"], batch: int) -> Tensor:
    device = device_of(model)
    with torch.no_grad(), evaluating(model):
        return torch.cat([model.purify(part.to(device)).cpu() for part in states.split(batch)])  # pyright: ignore


def _answers(models: Sequence[nn.Module], images: Tensor, labels: Tensor, batch: int) -> Bool[np.ndarray, " answer"]:
    return np.concatenate([~ask(model, images, labels, batch=batch) for model in models])
