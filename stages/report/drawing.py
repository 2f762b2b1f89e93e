"""How figures are drawn: palette, looks of series, labels, and an SVG whose bytes depend on nothing but the drawing.

Series differ by marker and dash as well as by colour, from the palette of Okabe and Ito, "Color universal design",
2008, which people with any colour vision can tell apart. Nothing here touches pyplot.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib import rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, QUIET = "#1b1f24", "#66707a"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
SERIES = (  # colour, marker, dash
    (BLUE, "o", "-"),
    (VERMILLION, "s", (0, (5, 2))),
    (GREEN, "^", (0, (5, 1.5, 1, 1.5))),
    (PURPLE, "D", (0, (1, 1.5))),
    (ORANGE, "v", (0, (8, 2))),
    (SKY, "P", (0, (3, 1, 1, 1, 1, 1))),
)
HATCHES = ("", "///", "\\\\\\", "|||", "---", "xxx")
WIDTH = 4.8  # inches: 460 pixels, so that text of 11 points is still legible at 330
LEGEND_CHARACTERS = 62  # of the legend's font across a figure
LONGEST_NAME = 34  # characters of a label before it is cut: a hostile or careless name must not squeeze the figure

_STYLE: Any = {  # matplotlib's names of settings are a type that only it can write
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 11,
    "grid.alpha": 0.25,
    "grid.color": QUIET,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def svg(name: str, draw: Callable[[Axes], None], *, width: float = WIDTH, height: float = 3.2) -> str:
    with _style(name):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        target = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(target, format="svg", transparent=True, metadata=nothing)
    text = target.getvalue()
    text = text[text.index("<svg") :].strip()
    # names of groups repeat from figure to figure, and an id may stand only once on a page
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)


@contextmanager
def _style(name: str) -> Iterator[None]:
    """Our settings and none of the user's; the name keeps the ids of different figures apart."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # the reader's fonts draw the text
        matplotlib.rcParams.update({key: value for key, value in rcParamsDefault.items() if key != "backend"})
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": name})
        yield


def legend_above(axes: Axes, handles: Sequence) -> None:
    """A legend in as many columns as its longest label leaves room for."""
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    columns = max(1, min(len(handles), int(LEGEND_CHARACTERS / (longest + 6))))  # 6: the line and the gaps
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, columnspacing=1.2, borderaxespad=0.1)


def cycle() -> Iterator[tuple]:
    """Every series its own look: after six colours, the same ones come with other markers and dashes."""
    for number in range(len(SERIES) ** 2):
        again, place = divmod(number, len(SERIES))
        _, marker, dash = SERIES[(place + again) % len(SERIES)]
        yield SERIES[place][0], marker, dash


def fills() -> Iterator[tuple[str, str]]:
    colours = (VERMILLION, GREEN, ORANGE, PURPLE, SKY, QUIET)
    for number in range(len(colours) * len(HATCHES)):
        again, place = divmod(number, len(colours))
        yield colours[place], HATCHES[(place + again) % len(HATCHES)]


def short(text: str, most: int = LONGEST_NAME) -> str:
    """A label that XML can hold, on one line, and cut where it is longer than a figure has room for."""
    plain = " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"
