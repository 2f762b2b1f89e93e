"""A report as sections of blocks, from which the page and the Markdown are both made, so that they say the same."""

from dataclasses import dataclass
from typing import ClassVar

PHONE_CHARACTERS = 40  # of a table's row beside each other, with room between columns


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, kw_only=True)
class Bullets:
    """A list of sentences; ``mark`` is "warn" where they should alarm the reader."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of finished cells, the first of each row being its name."""

    kind: ClassVar[str] = "grid"
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    ours: frozenset[int] = frozenset()
    """Rows that are set apart, because they were measured here."""
    verdicts: tuple[str, ...] = ()
    """One a row, where the rows are checks."""
    narrow: bool = False
    """Whether it may stand beside a figure."""

    @property
    def wide(self) -> bool:
        """Whether a phone shows the cells of a row below each other, since they do not fit beside each other."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        return sum(widths) > PHONE_CHARACTERS


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure, with the sentence that stands for it where it cannot be seen."""

    kind: ClassVar[str] = "chart"
    name: str
    """Names its file; letters, digits and hyphens."""
    title: str
    says: str
    svg: str
    note: str = ""
    numbers: Grid | None = None
    """The figure's numbers, folded away below it."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One small picture; ``mark`` is "right" or "wrong" where the classifier was asked about it."""

    gallery: str
    """The gallery that it is of: "pictures", or "trajectory-0", "trajectory-1" ..."""
    of: str
    """What it shows, such as "clean" or "state"."""
    number: int
    """Which image, or which step."""
    says: str
    png: bytes
    caption: str = ""
    mark: str = ""

    @property
    def name(self) -> str:
        """Names its file."""
        return f"{self.gallery}-{self.number}-{self.of}".replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The pictures that stand above each other: one of each row of a gallery."""

    head: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures in rows of one kind each."""

    kind: ClassVar[str] = "gallery"
    title: str
    note: str
    corner: str
    rows: tuple[str, ...]
    bands: tuple[tuple[Strip, ...], ...]
    """Strips, in groups that fit beside each other."""
    steps: bool = False
    """Whether the strips are the steps of one image rather than different images."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What only some readers look for."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: "tuple[Block, ...]"


Block = Text | Bullets | Grid | Chart | Gallery | Fold


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, and what is below it."""

    name: str
    """Its anchor."""
    title: str
    blocks: tuple[Block, ...]
    lead: str = ""
