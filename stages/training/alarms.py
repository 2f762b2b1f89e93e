"""Alarms: what is wrong with a round of training, in words."""

from collections.abc import Iterable, Mapping
from typing import Any

ZERO_GRADIENTS = 0.3  # share of pixels without gradient: masked by saturation, so the attack is blind there


def alarms(line: dict, best: float | None) -> list[str]:
    """What is wrong with a round, in words; ``best`` is the judge's best robust accuracy before it."""
    found = []
    if line["zero_gradients"] > ZERO_GRADIENTS:
        found.append(
            f"zero gradients: {line['zero_gradients']:.0%} of the pixels have none, so the attack is blind there; "
            "look for saturation in the classifier or for bfloat16"
        )
    robust = line.get("judge", {}).get("robust")
    if robust and best is not None and robust["interval"][1] < best:
        found.append(
            f"collapse: the judge finds {robust['value']:.1%}, after {best:.1%} before; "
            "lower train.learning_rate, or look for label leaking if it is near 0"
        )
    return found


def kind_of_alarm(alarm: str) -> str:
    """What it is about, whatever its figures.

    >>> kind_of_alarm("zero gradients: 31% of the pixels have none")
    'zero gradients'
    """
    return alarm.partition(":")[0]


def alarms_by_kind(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """The alarms of some rounds, the last one of each kind: one that goes on stands in the lines of many rounds.

    >>> alarms_by_kind([{"round": number, "alarms": [f"collapse: after {number}"]} for number in (3, 4, 7)])
    ['collapse: after 7 (in round 8, and in 2 before)']
    """
    found: dict[str, tuple[str, int, int]] = {}
    for line in lines:
        for alarm in line["alarms"]:
            kind = kind_of_alarm(alarm)
            found[kind] = alarm, line["round"] + 1, found[kind][2] + 1 if kind in found else 0
    return [
        f"{alarm} (in round {last}{f', and in {before:,} before' * (before > 0)})"
        for alarm, last, before in found.values()
    ]
