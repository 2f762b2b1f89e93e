"""What an evaluation hands to a report: figures with what they rest on, in types that JSON can hold.

>>> Check(2, "gradient", "pass", "0 of 64 directions disagree", images=8, says="The gradients are true.").verdict
'pass'
"""

from dataclasses import dataclass, field
from typing import Literal

from stages.evaluation.accuracy import Accuracy

Verdict = Literal["pass", "warn", "fail", "not applicable"]


@dataclass(frozen=True)
class Check:
    """A check of the list in stages/evaluation/README.md, and what it found."""

    number: int
    name: str
    verdict: Verdict
    figure: str
    """The measured figure in a few words, such as "3 of 64 images"."""
    images: int = field(kw_only=True)
    """How many images the figure rests on; 0 where none was needed."""
    says: str = field(kw_only=True)
    """What the verdict means for the reader, in a plain sentence."""
    evidence: dict[str, object] = field(kw_only=True, default_factory=dict)
    """All numbers behind the figure, as JSON can hold them."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Accuracy against a quantity that was varied."""

    name: str
    """What was measured, such as "PGD-100"."""
    x: str
    """The quantity with its unit, such as "radius (pixels in [0, 1])"."""
    points: tuple[tuple[float, Accuracy], ...]

    def as_json(self) -> dict[str, object]:
        """The curve as JSON can hold it; `from_json` reads it."""
        points = [[x, accuracy.correct, accuracy.images] for x, accuracy in self.points]
        return {"name": self.name, "x": self.x, "points": points}

    @classmethod
    def from_json(cls, found: dict) -> "Curve":
        """The curve that `as_json` wrote."""
        points = tuple((float(x), Accuracy(correct, images)) for x, correct, images in found["points"])
        return cls(name=found["name"], x=found["x"], points=points)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: somebody's figures for one setting; what was not measured is None."""

    name: str
    values: tuple[Accuracy | float | str | None, ...]
    """One a column: ours as Accuracy with its interval, published ones as a percentage."""
    setting: str = ""
    """How it was obtained, where that differs from the row that it stands beside."""
    source: str = ""
    """Who published it; empty: measured here."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper, or of the field, with our rows in it."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
