"""The figures of a search, as SVG: the same numbers give the same bytes."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from stages.evaluation.accuracy import Accuracy
from stages.report.drawing import BLUE, QUIET, VERMILLION, WIDTH, cycle, legend_above, short, svg

FEW = 12  # trials of which each can have its number, or its own look
WIDE = 5.0  # from here on between the smallest and the largest value, an axis is logarithmic


def front(points: Sequence[tuple[str, Accuracy, Accuracy]], done: Sequence[bool], chosen: int | None) -> str:
    """Clean against robust accuracy, a point a trial by its label, and the Pareto front of those that are ``done``: of
    the same rounds. The others, which were stopped before, are hollow."""
    best = pareto([(clean, robust) for (_, clean, robust), full in zip(points, done, strict=True) if full])

    def draw(axes: Axes) -> None:
        corners = [(100 * clean.value, 100 * robust.value) for clean, robust in best]
        axes.plot(*zip(*corners, strict=True), color=QUIET, drawstyle="steps-pre", zorder=1, label="Pareto front")
        for number, ((label, clean, robust), full) in enumerate(zip(points, done, strict=True)):
            _point(axes, 100 * clean.value, robust, full=full, is_chosen=number == chosen)
            if len(points) <= FEW or (clean, robust) in best:
                place = (100 * clean.value, 100 * robust.value)
                axes.annotate(short(label, 14), place, (6, 6), textcoords="offset points", fontsize=9)
        axes.margins(0.12)
        axes.set(xlabel="hold-out, clean (%)", ylabel="hold-out, under attack (%)")
        legend_above(axes, axes.get_legend_handles_labels()[0])

    return svg("front", draw, height=3.6)


def pareto(points: Sequence[tuple[Accuracy, Accuracy]]) -> list[tuple[Accuracy, Accuracy]]:
    """The points than which no other has more of both accuracies, by the first of the two.

    >>> few, half, many = (Accuracy(correct, 10) for correct in (1, 5, 9))
    >>> [(a.correct, b.correct) for a, b in pareto([(many, few), (half, half), (few, half), (few, many)])]
    [(1, 9), (5, 5), (9, 1)]
    """
    found: list[tuple[Accuracy, Accuracy]] = []
    for each in sorted(set(points), key=lambda point: (-point[0].value, -point[1].value)):
        if not found or each[1].value > found[-1][1].value:
            found.append(each)
    return found[::-1]


def panel(name: str, points: Sequence[tuple[object, Accuracy]], done: Sequence[bool], chosen: int | None) -> str:
    """The judge's accuracy against one setting, with intervals; hollow as in `front`."""
    values = [value for value, _ in points]
    is_numeric = _is_numeric(values)
    known = list(dict.fromkeys(sorted(map(str, values))))

    def draw(axes: Axes) -> None:
        for number, ((value, robust), full) in enumerate(zip(points, done, strict=True)):
            place = float(value if is_numeric else known.index(str(value)))  # type: ignore[arg-type]
            _point(axes, place, robust, full=full, is_chosen=number == chosen)
        if not is_numeric:
            axes.set_xticks(range(len(known)), [short(each, 14) for each in known])
        elif min(values) > 0 and max(values) / min(values) > WIDE:  # type: ignore[type-var, operator]
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.margins(x=0.08)
        axes.set(xlabel=short(name, 60), ylabel="hold-out, under attack (%)")
        axes.set_ylim(bottom=0)

    return svg(f"panel-{name}", draw, height=2.8)


def _point(axes: Axes, x: float, robust: Accuracy, *, full: bool, is_chosen: bool) -> None:
    low, high = robust.interval
    axes.plot([x, x], [100 * low, 100 * high], color=VERMILLION if is_chosen else BLUE, alpha=0.35, linewidth=1.2)
    colour, marker, size = (VERMILLION, "*", 11.0) if is_chosen else (BLUE, "o", 5.5)
    axes.plot(
        x,
        100 * robust.value,
        color=colour,
        marker=marker,
        markersize=size,
        markerfacecolor=colour if full else "none",
        linestyle="",
        label="chosen" if is_chosen else None,
    )


def parallel(axes_names: Sequence[str], trials: Sequence[tuple[str, Sequence[object]]], chosen: int | None) -> str:
    """Parallel coordinates: a line a trial through its settings to the judge's accuracy, the last axis, in percent."""
    columns = [[values[i] for _, values in trials] for i in range(len(axes_names))]
    scales = [_scale(column) for column in columns]

    def draw(axes: Axes) -> None:
        accuracies = np.array(columns[-1], dtype=float)
        span = float(np.ptp(accuracies)) or 1.0
        for number, (label, values) in enumerate(trials):
            shift = 0.012 * (number - (len(trials) - 1) / 2) if len(trials) < FEW else 0.0
            heights = [scale(value) + shift for scale, value in zip(scales[:-1], values[:-1], strict=True)]
            heights.append(scales[-1](values[-1]))
            best = number == chosen
            shade = colormaps["cividis"](0.75 - 0.75 * (accuracies[number] - accuracies.min()) / span)
            axes.plot(
                range(len(heights)),
                heights,
                color=VERMILLION if best else shade,
                marker="*" if best else "o",
                markersize=11 if best else 4.5,
                linewidth=3 if best else 1.4,
                zorder=3 if best else 2,
                label=f"{label} (chosen)" if best else None,
            )
        for place, scale in enumerate(scales):
            axes.axvline(place, color=QUIET, linewidth=1, zorder=1)
            for height, text in scale.ticks:
                axes.annotate(text, (place, height), (7, 7), textcoords="offset points", va="center", fontsize=9)
        labels = [short(name, 20).replace(".", ".\n") for name in axes_names]  # in one line, neighbours meet
        axes.set_xticks(range(len(scales)), labels)
        axes.set(xlim=(-0.15, len(scales) - 0.55), ylim=(-0.08, 1.12))
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if chosen is not None:
            legend_above(axes, axes.get_legend_handles_labels()[0])

    return svg("parallel", draw, width=max(WIDTH, 1.3 * len(axes_names)))


def rungs(trials: Sequence[tuple[str, Sequence[tuple[float, float]]]], chosen: int | None) -> str:
    """What the judge said of every trial as it went on, in percent; a line that ends early was stopped."""

    def draw(axes: Axes) -> None:
        for number, ((label, points), (colour, marker, dash)) in enumerate(zip(trials, cycle(), strict=False)):
            best = number == chosen
            axes.plot(
                [place for place, _ in points],
                [100 * value for _, value in points],
                color=colour,
                marker=marker,
                linestyle=dash,
                linewidth=3 if best else 1.5,
                label=f"{label} (chosen)" if best else label,
            )
        axes.set(xlabel="rounds", ylabel="hold-out, under attack (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        if len(trials) <= FEW:
            legend_above(axes, axes.get_legend_handles_labels()[0])

    return svg("rungs", draw)


def _is_numeric(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


class _scale:
    """Places the values of one axis of parallel coordinates in [0, 1]; what is no number stands at equal distances."""

    def __init__(self, column: Sequence[object]) -> None:
        self.numeric = _is_numeric(column)
        distinct = sorted(set(column)) if self.numeric else sorted(set(map(str, column)))  # type: ignore[type-var]
        self.known = distinct
        few = distinct if len(distinct) <= 6 else [distinct[0], distinct[-1]]
        self.ticks = [(self(value), f"{value:.3g}" if self.numeric else short(str(value), 14)) for value in few]

    def __call__(self, value: object) -> float:
        if len(self.known) == 1:
            return 0.5
        if not self.numeric:
            return self.known.index(str(value)) / (len(self.known) - 1)
        low, high = float(self.known[0]), float(self.known[-1])  # type: ignore[arg-type]
        return (float(value) - low) / (high - low)  # type: ignore[arg-type]
