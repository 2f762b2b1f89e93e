"""Figures in words: every number of a report is formatted here, the robust accuracy and the verdict said plainly."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.evidence import Check
from stages.rap.threat import ThreatModel

MISSING = "\N{EN DASH}"


def percent(share: float) -> str:
    """A share in [0, 1], to a tenth of a percent.

    >>> percent(0.421875)
    '42.2 %'
    """
    return f"{100 * share:.1f} %"


def interval(accuracy: Accuracy) -> str:
    """The 95 % interval in percent.

    >>> interval(Accuracy(54, 128))
    '[34.0, 50.8]'
    """
    low, high = accuracy.interval
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def cell(value: object) -> str:
    """A value as it stands in a table: published percentages keep their two digits.

    >>> cell(Accuracy(54, 128)), cell(73.24), cell("yes"), cell(0.05 / 3)
    ('42.2 % [34.0, 50.8] of 128', '73.24', 'yes', '0.01667')
    >>> cell({"0.1": {"correct": 54, "images": 128, "value": 0.42, "interval": [0.34, 0.51]}, "steps": 20})
    '0.1: 42.2 % [34.0, 50.8] of 128; steps: 20'
    >>> cell(None) == cell(float("nan")) == MISSING
    True
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        if {"correct", "images"} <= value.keys():  # an accuracy in JSON
            return str(Accuracy(correct=value["correct"], images=value["images"]))
        return "; ".join(f"{name}: {cell(each)}" for name, each in value.items()) or MISSING
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value)) or MISSING
    return str(value)


def duration(seconds: float | None) -> str:
    """
    >>> duration(0.23), duration(289.4), duration(5400.0)
    ('0.2 s', '4 min 49 s', '1 h 30 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def ball(threat: ThreatModel) -> str:
    """The threat model, with its radius also in 255ths where it is a whole number of them.

    >>> ball(ThreatModel(norm="Linf", radius=8 / 255)), ball(ThreatModel(norm="L2", radius=0.5))
    ('L-inf 8/255', 'L2 0.5')
    """
    norm = "L-inf" if threat.norm == "Linf" else threat.norm
    levels = threat.radius * 255
    whole = threat.norm == "Linf" and abs(levels - round(levels)) < 1e-6 and round(threat.radius, 2) != threat.radius
    return f"{norm} {round(levels)}/255" if whole else f"{norm} {threat.radius:.4g}"


def robust_accuracy(accuracy: Accuracy) -> str:
    """
    >>> robust_accuracy(Accuracy(54, 128))
    'Of 128 test images, 54 remain robust to everything that was run on them: 42.2 % [34.0, 50.8].'
    """
    return (
        f"Of {accuracy.images:,} test images, {accuracy.correct:,} remain robust to everything that was run on them: "
        f"{percent(accuracy.value)} {interval(accuracy)}."
    )


def verdict(checks: Sequence[Check]) -> str:
    """The checks in a sentence or two; those that failed or warn are named."""
    if not checks:
        return "No checks were run: nothing here tells whether the attacks were strong enough."
    applied = [check for check in checks if check.verdict != "not applicable"]
    if not applied:
        return f"None of the {len(checks)} checks applies."
    passed = sum(check.verdict == "pass" for check in applied)
    parts = [f"{passed} of {len(applied)} checks passed"]
    for kind, singular, plural in (("fail", "failed", "failed"), ("warn", "warns", "warn")):
        found = [check.name for check in applied if check.verdict == kind]
        if found:
            parts.append(f"{len(found)} {singular if len(found) == 1 else plural}: {', '.join(found)}")
    spared = len(checks) - len(applied)
    if spared:
        parts.append(f"{spared} {'does' if spared == 1 else 'do'} not apply")
    text = "; ".join(parts) + "."
    failed = any(check.verdict == "fail" for check in applied)
    return f"{text} The robust accuracy cannot be relied on before what failed is explained." if failed else text


def worst_verdict(checks: Sequence[Check]) -> str:
    """The worst verdict: "fail", "warn", "pass", or "none" where no check says anything."""
    found = {check.verdict for check in checks}
    return next((each for each in ("fail", "warn", "pass") if each in found), "none")
