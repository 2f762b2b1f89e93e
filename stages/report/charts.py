"""The figures, as SVG: the same numbers give the same bytes."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.evidence import Curve
from stages.report.drawing import (
    BLUE,
    INK,
    SERIES,
    VERMILLION,
    cycle,
    fills,
    legend_above,
    short,
    svg,
)

SMOOTHED = 15  # rounds of the running median; one round's loss says little
ROBUST = "remains robust"


def glance(rows: Sequence[tuple[str, Accuracy | None, Accuracy | None]], undefended: bool) -> str:
    """Accuracy of the robust classifier and of the undefended classifier in each row, with intervals."""

    def draw(axes: Axes) -> None:
        for place, (_, robust, alone) in enumerate(rows):
            shift = 0.14 if undefended else 0.0
            for accuracy, colour, marker, up, fill in (
                (robust, BLUE, "o", -shift, BLUE),
                (alone, VERMILLION, "s", shift, "none"),
            ):
                if accuracy is not None:
                    low, high = accuracy.interval
                    axes.plot([100 * low, 100 * high], [place + up] * 2, color=colour, linewidth=1.6)
                    axes.plot(100 * accuracy.value, place + up, marker, color=colour, markerfacecolor=fill)
        axes.set(xlim=(-2, 102), ylim=(len(rows) - 0.5, -0.5))
        # At the right end: beneath the middle of axes that long names make narrow, it would reach out of the chart.
        axes.set_xlabel("accuracy (%, with 95 % interval)", loc="right")
        axes.set_yticks(range(len(rows)), [short(name) for name, *_ in rows])
        axes.grid(axis="y", visible=False)
        if undefended:
            legend_above(
                axes, [_mark("robust classifier", BLUE, "o"), _mark("undefended classifier", VERMILLION, "s", "none")]
            )

    return svg("glance", draw, height=0.95 + 0.4 * len(rows))


def accuracy_curves(x: str, curves: Sequence[Curve], mark: float | None) -> str:
    """Curves of accuracy against one quantity; ``mark`` is a dotted line at the radius of the threat."""

    def draw(axes: Axes) -> None:
        for curve, (colour, marker, dash) in zip(curves, cycle(), strict=False):
            points = sorted(curve.points, key=lambda point: point[0])
            values = np.array([[place, accuracy.value, *accuracy.interval] for place, accuracy in points])
            values[:, 1:] *= 100
            axes.fill_between(values[:, 0], values[:, 2], values[:, 3], color=colour, alpha=0.15, linewidth=0)
            axes.plot(values[:, 0], values[:, 1], color=colour, marker=marker, ls=dash, label=short(curve.name))
        every = sorted({place for curve in curves for place, _ in curve.points})
        if every[0] > 0 and every[-1] / every[0] > 20:  # attack steps, of which each matters less than the one before
            axes.set_xscale("log")
            axes.set_xticks(every, [f"{place:g}" for place in every])
            axes.minorticks_off()
        elif all(place == int(place) for place in every):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if mark is not None:
            axes.axvline(mark, color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label=f"threat model, {mark:.4g}")
        axes.set(ylim=(-2, 102), xlabel=short(x, 60), ylabel="accuracy (%)")
        legend_above(axes, axes.get_legend_handles_labels()[0])

    return svg(f"curve-{x}", draw)


def broken_by(models: Sequence[tuple[str, int, Mapping[str, int]]]) -> str:
    """A bar of 100 % for each model: what remains robust, then the images by what broke them first."""
    names = list(dict.fromkeys(name for _, _, by in models for name in by))
    looks = {ROBUST: (BLUE, ""), **dict(zip(names, fills(), strict=False))}

    def draw(axes: Axes) -> None:
        for place, (_, images, by) in enumerate(models):
            left = 0.0
            for name, count in {ROBUST: images - sum(by.values()), **by}.items():
                colour, hatch = looks[name]
                share = 100 * count / images
                axes.barh(place, share, left=left, height=0.6, color=colour, hatch=hatch, edgecolor="#ffffff")
                if share > 8:  # narrower parts have no room for their number, which the table below holds
                    middle = (left + share / 2, place)
                    text = axes.annotate(str(count), middle, ha="center", va="center", color="#ffffff", weight="bold")
                    text.set_bbox({"facecolor": colour, "edgecolor": "none", "pad": 2})
                left += share
        axes.set(xlim=(0, 100), xlabel="share of the test images (%)", ylim=(len(models) - 0.5, -0.5))
        axes.set_yticks(range(len(models)), [short(name) for name, *_ in models])
        axes.grid(visible=False)
        handles = [
            Patch(facecolor=colour, hatch=hatch, edgecolor="#ffffff", label=short(name))
            for name, (colour, hatch) in looks.items()
        ]
        legend_above(axes, handles)

    return svg("broken", draw, height=1.3 + 0.5 * len(models) + 0.25 * math.ceil(len(names) / 3))


def judged(points: Sequence[tuple[float, Accuracy, Accuracy]], shipped: float | None) -> str:
    """The judge's verdicts while training: clean and robust accuracy of the hold-out, with intervals."""

    def draw(axes: Axes) -> None:
        places = [place for place, *_ in points]
        verdicts = {"clean": [clean for _, clean, _ in points], "under attack": [robust for *_, robust in points]}
        for (name, found), (colour, marker, dash) in zip(verdicts.items(), (SERIES[1], SERIES[0]), strict=True):
            low, high = zip(*(each.interval for each in found), strict=True)
            axes.fill_between(places, _percent(low), _percent(high), color=colour, alpha=0.15, linewidth=0)
            axes.plot(places, _percent(each.value for each in found), color=colour, marker=marker, ls=dash, label=name)
        if shipped is not None:
            axes.axvline(shipped, color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label="shipped")
        axes.set(ylim=(-2, 102), xlabel="updates", ylabel="hold-out accuracy (%)")
        legend_above(axes, axes.get_legend_handles_labels()[0])

    return svg("judge", draw)


def lines(
    name: str,
    updates: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    y: str,
    smooth: bool = True,
    log: bool = False,
    mark: tuple[float, str] | None = None,
) -> str:
    """Quantities of each round against updates; NaN is a gap.

    With ``smooth`` and enough rounds, the running median is drawn and the rounds themselves stand pale behind it.
    """

    def draw(axes: Axes) -> None:
        for (label, values), (colour, _, dash) in zip(series.items(), cycle(), strict=False):
            rounds = np.asarray(values, dtype=float)
            if smooth and len(rounds) >= 3 * SMOOTHED:
                axes.plot(updates, rounds, color=colour, alpha=0.25, linewidth=0.7)
                rounds = _running_median(rounds)
            axes.plot(updates, rounds, color=colour, linestyle=dash, label=short(label))
        if mark is not None:
            axes.axhline(mark[0], color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label=mark[1])
        if log:
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
        axes.set(xlabel="updates", ylabel=y)
        legend_above(axes, axes.get_legend_handles_labels()[0])

    return svg(name, draw)


def times(seconds: Mapping[str, float], words: Sequence[str]) -> str:
    """Time of each stage, as bars; ``words`` are written beside them."""

    def draw(axes: Axes) -> None:
        places = range(len(seconds))
        axes.barh(places, list(seconds.values()), height=0.6, color=BLUE, alpha=0.85)
        for place, value, text in zip(places, seconds.values(), words, strict=True):
            axes.annotate(text, (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(places, [short(name) for name in seconds])
        axes.set(ylim=(len(seconds) - 0.5, -0.5), xlim=(0, 1.3 * max(seconds.values()) or 1), xlabel="time (s)")
        axes.grid(axis="y", visible=False)

    return svg("times", draw, height=0.8 + 0.36 * len(seconds))


def _percent(shares: Iterable[float]) -> list[float]:
    return [100 * share for share in shares]


def _running_median(values: np.ndarray) -> np.ndarray:
    """The median of the ``SMOOTHED`` rounds around each; NaN where they are all missing."""
    half = SMOOTHED // 2
    padded = np.pad(values, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, SMOOTHED)
    return np.array([np.nanmedian(window) if np.isfinite(window).any() else np.nan for window in windows])


def _mark(label: str, colour: str, marker: str, fill: str | None = None) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, markerfacecolor=fill or colour, label=label)
