"""The results of another run or evaluation, to compare with image by image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.measure.findings import Findings
from pipeline.measure.outcome import Evaluation
from pipeline.tell.text import ball_text
from stages.evaluation.comparison import Comparison
from stages.rap.threat import ThreatModel


def read_results(path: Path, *, test: str) -> dict[str, Any]:
    """The results.json of another run or evaluation, by its path or directory, with ``worst_cases`` of its first model.

    Raises ValueError where there is none, or it is of other images than the test set of this fingerprint.
    """
    path = path / "results.json" if path.is_dir() else path
    try:
        other = json.loads(path.read_text())
        theirs, data = other["test"], other["data"]
        other["worst_cases"] = next(iter(other["models"].values()))["worst_cases"]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(
            f"--compare {path}: no results of a run or an evaluation can be read there ({error})"
        ) from error
    if theirs != test:
        raise ValueError(f"--compare {path} was evaluated on other images ({data}): compare on one test set")
    return other


def compare_with(found: Findings, other: Mapping[str, Any]) -> Comparison:
    """Our worst case against that of other results in the same ball, on the images that both have.

    Raises ValueError where they have no ball or no image in common.
    """
    worst = found.worst_cases()
    ball, theirs = common_ball(list(worst), other)
    return _paired(worst[ball], theirs["images"])


def common_ball(balls: Sequence[ThreatModel], other: Mapping[str, Any]) -> tuple[ThreatModel, dict[str, Any]]:
    """The first of our balls in which the other model was attacked too, and its worst case there.

    Raises ValueError where there is none.
    """
    for ball in balls:
        for theirs in other["worst_cases"]:
            if theirs["threat"] == asdict(ball):
                return ball, theirs
    known = ", ".join(ball_text(ThreatModel(**theirs["threat"])) for theirs in other["worst_cases"])
    mine = ", ".join(dict.fromkeys(map(ball_text, balls)))
    raise ValueError(f"the other model was attacked within {known}, this one within {mine}: use one ball")


def _paired(ours: Evaluation, theirs: dict[str, list]) -> Comparison:
    robust = {row: by is None for row, by in zip(theirs["rows"], theirs["broken_by"], strict=True)}
    mine = zip(ours.rows.tolist(), ours.verdicts, strict=True)
    both = [(by is None, robust[row]) for row, by in mine if row in robust]
    if not both:
        raise ValueError("the other evaluation has no image in common with this one: use as many --images")
    first, second = np.array(both).T
    return Comparison.of(first, second)
