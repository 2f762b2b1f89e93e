"""What a report is about: figures with what they rest on, pictures, and where all of it came from.

Only the robust accuracy and what it is a figure of must be there; a section without content is left out, so that a
model that was trained elsewhere is reported with the same page.

>>> contents = Contents(
...     title="digits", data="digits", threat=ThreatModel(radius=0.2), clean=Accuracy(351, 360),
...     robust_accuracy=Accuracy(54, 128), worst_of=("AutoAttack standard",))
>>> contents.robust_accuracy.images
128
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from jaxtyping import Float, Integer

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.evidence import Check, Curve, Table, Verdict
from stages.rap.threat import Norm, ThreatModel
from stages.report.png import amplification

# Shapes that belong together are compared in __post_init__, with a message that says which image is the odd one.
Images = Float[np.ndarray, "_image _channel _height _width"]
Classes = Integer[np.ndarray, "_image"]


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Accuracy under one attack."""

    name: str
    robust: Accuracy | None = None
    """Of the robust classifier, or of the only model that there is."""
    undefended: Accuracy | None = None
    """Of the undefended classifier, under the same attack."""


@dataclass(frozen=True, kw_only=True)
class Broken:
    """Which attack was the first to break each image of a model."""

    model: str
    images: int
    by: Mapping[str, int]
    """Images by attack, in the order in which the attacks ran; "clean" counts images that needed no attack.
    Images that remain robust to all of them are those that are left."""

    def __post_init__(self) -> None:
        counted = sum(self.by.values())
        if self.images < 1 or min(self.by.values(), default=0) < 0 or counted > self.images:
            raise ValueError(
                f"of {self.images} images of {self.model!r}, {counted} are said to be broken ({dict(self.by)}); "
                "each image counts once, under the first attack that broke it"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Images as in the paper's Fig. 4-7, in [0, 1], with 1 to 4 channels.

    Predictions are what the classifier says when it is given the images of that name; ``restored_predictions`` are
    therefore those of the whole robust classifier under attack. Raises ValueError where the parts do not match.
    """

    attack: str
    """Which attack made the adversarial images."""
    clean: Images
    adversarial: Images
    labels: Classes
    clean_predictions: Classes | None = None
    adversarial_predictions: Classes | None = None
    restored: Images | None = None
    """The adversarial images after the adapter."""
    restored_predictions: Classes | None = None
    restored_clean: Images | None = None
    """The clean images after the adapter (Fig. 7)."""
    restored_clean_predictions: Classes | None = None

    def __post_init__(self) -> None:
        _check_images("pictures.clean", self.clean, self.clean.shape)
        for name in ("adversarial", "restored", "restored_clean"):
            _check_images(f"pictures.{name}", getattr(self, name), self.clean.shape)
        for name in ("labels", *(f"{kind}_predictions" for kind in _KINDS)):
            _check_classes(f"pictures.{name}", getattr(self, name), len(self.clean))

    @property
    def amplification(self) -> float:
        """By how much the perturbations are multiplied to be seen."""
        return amplification(self.adversarial - self.clean)

    @property
    def predictions(self) -> dict[str, Classes]:
        """The predictions that there are, by kind of image."""
        known = {kind: getattr(self, f"{kind}_predictions") for kind in _KINDS}
        return {kind: classes for kind, classes in known.items() if classes is not None}


_KINDS = ("clean", "adversarial", "restored", "restored_clean")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrajectoryPictures:
    """One attack, step by step: the states x_0 .. x_T of an image, in [0, 1]; ``states`` are `Segments.states` of
    one example as floats.

    Raises ValueError where the parts do not match.
    """

    name: str
    """Which attack this is, and against what."""
    clean: Float[np.ndarray, "_channel _height _width"]
    label: int
    states: Float[np.ndarray, "_state _channel _height _width"]
    first: int = 0
    """Steps that the first state has had."""
    predictions: Integer[np.ndarray, "_state"] | None = None
    """What the attacked model says of each state."""
    restored: Float[np.ndarray, "_state _channel _height _width"] | None = None
    """Each state after the adapter."""

    def __post_init__(self) -> None:
        shape = (len(self.states), *self.clean.shape)
        _check_images("trajectory.clean", self.clean[None], (1, *self.clean.shape))
        _check_images("trajectory.states", self.states, shape)
        _check_images("trajectory.restored", self.restored, shape)
        _check_classes("trajectory.predictions", self.predictions, len(self.states))
        _check_classes("trajectory.label", np.array([self.label]), 1)

    def distances(self, norm: Norm) -> list[float]:
        """How far each state is from the clean image, in pixels of [0, 1]."""
        difference = (self.states - self.clean).reshape(len(self.states), -1).astype(np.float64)
        return np.linalg.norm(difference, ord=np.inf if norm == "Linf" else 2, axis=1).tolist()


@dataclass(frozen=True, kw_only=True)
class LineageEntry:
    """Something that was made on the way, as its manifest names it; what is not known is empty or None."""

    kind: str
    fingerprint: str
    commit: str = ""
    created: str = ""
    """When it was made, in ISO 8601."""
    device: str = ""
    seconds: float | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions by name of the package."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """All that a report says. Raises ValueError for figures that contradict each other, or that cannot be drawn."""

    title: str
    """What is reported, such as the name of the run."""
    data: str
    """The data set that the test images are of."""
    threat: ThreatModel
    clean: Accuracy
    """Of the test images without an attack."""
    robust_accuracy: Accuracy
    """The images that remain robust to everything in ``worst_of``."""
    worst_of: tuple[str, ...]
    """The attacks of which the robust accuracy is the worst case for each image."""
    description: str = ""
    """The model in a few words."""
    undefended_clean: Accuracy | None = None
    """Of the undefended classifier, without an attack."""
    undefended_robust_accuracy: Accuracy | None = None
    """Of the undefended classifier, under everything in ``worst_of``."""
    attacks: tuple[Attacked, ...] = ()
    """The evaluation's attacks, in the threat model."""
    probes: tuple[Attacked, ...] = ()
    """What the checks tried within the ball, attacks at smaller radii among it; it counts in the robust accuracy."""
    checks: tuple[Check, ...] = ()
    flags: tuple[str, ...] = ()
    """What should make a reader doubt the robust accuracy, such as AutoAttack's own flags."""
    notes: tuple[str, ...] = ()
    """What a reader should know, such as that the data are a degraded copy."""
    broken: tuple[Broken, ...] = ()
    curves: tuple[Curve, ...] = ()
    """Curves of the same ``x`` are drawn together; one whose ``x`` begins with "radius" shows the threat's."""
    tables: tuple[Table, ...] = ()
    classes: tuple[str, ...] = ()
    """Names of the classes; without them, their numbers are shown."""
    pictures: Pictures | None = None
    trajectories: tuple[TrajectoryPictures, ...] = ()
    training: tuple[Mapping[str, object], ...] = ()
    """The lines of metrics.jsonl."""
    shipped_version: int | None = None
    """The weights version that was evaluated, marked in the training's curves."""
    alarms: tuple[str, ...] = ()
    """The training's alarms."""
    search: Mapping[str, object] = field(default_factory=dict)
    """``trials`` and ``chosen``, as in results.json."""
    recipe: Mapping[str, object] = field(default_factory=dict)
    lineage: tuple[LineageEntry, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Work of each stage, added up over its workers."""

    def __post_init__(self) -> None:
        if not self.title or not self.data or not self.worst_of:
            raise ValueError(
                f"title is {self.title!r}, data {self.data!r} and worst_of {self.worst_of!r}; a report needs all "
                "three: its name, its data set, and at least one attack that the robust accuracy is the worst case of"
            )
        self._check_robust_accuracy()
        self._check_checks()
        self._check_curves_and_tables()
        self._check_classes()
        for line in self.training:
            if not {"round", "updates"} <= line.keys():
                raise ValueError(f"a training line has {sorted(line)}; round and updates are needed to draw it")
        for stage, seconds in self.seconds.items():
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"seconds[{stage!r}] is {seconds}; a duration is finite and not negative")

    def _check_robust_accuracy(self) -> None:
        worst = self.robust_accuracy
        counted = [each for each in (*self.attacks, *self.probes) if each.name in self.worst_of]
        same = [("clean", self.clean), *((each.name, each.robust) for each in counted if each.robust)]
        for name, accuracy in same:
            if accuracy.images == worst.images and accuracy.correct < worst.correct:
                raise ValueError(
                    f"the robust accuracy has {worst.correct} of {worst.images} images right, but {name} only "
                    f"{accuracy.correct}: the robust accuracy is the worst case over everything for each image"
                )

    def _check_checks(self) -> None:
        again = [number for number, count in Counter(check.number for check in self.checks).items() if count > 1]
        if again:
            raise ValueError(f"the checks {again} are there more than once; each has a number of its own")
        for check in self.checks:
            if check.verdict not in get_args(Verdict):
                allowed = ", ".join(get_args(Verdict))
                raise ValueError(
                    f"check {check.number} has the verdict {check.verdict!r}; allowed are {allowed}: "
                    "a check that was not run is left out"
                )

    def _check_curves_and_tables(self) -> None:
        for curve in self.curves:
            if not curve.points or not all(math.isfinite(x) for x, _ in curve.points):
                raise ValueError(
                    f"the curve {curve.name!r} against {curve.x!r} has the points {curve.points}; at least one is "
                    "needed, all at finite x"
                )
        for table in self.tables:
            for row in table.rows:
                if len(row.values) != len(table.columns):
                    raise ValueError(
                        f"the row {row.name!r} of {table.name!r} has {len(row.values)} values for the "
                        f"{len(table.columns)} columns {table.columns}: give None where nothing was measured"
                    )

    def _check_classes(self) -> None:
        if not self.classes:
            return
        asked = [self.pictures.labels, *self.pictures.predictions.values()] if self.pictures else []
        found = [int(classes.max()) for classes in asked]
        for trajectory in self.trajectories:
            found += [trajectory.label, *([] if trajectory.predictions is None else trajectory.predictions.tolist())]
        if max(found, default=0) >= len(self.classes):
            raise ValueError(
                f"the pictures have class {max(found)}, but only {len(self.classes)} classes are named: "
                "name all of them, or none"
            )


def _check_images(name: str, images: np.ndarray | None, shape: tuple[int, ...]) -> None:
    if images is None:
        return
    if images.shape != shape or images.ndim != 4 or not images.size or not 1 <= images.shape[1] <= 4:
        raise ValueError(
            f"{name} has the shape {list(images.shape)}; expected {list(shape)}, as images, channels (1 to 4), height, "
            "width, with at least one image"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # 1e-6: float32 rounding; NaN fails the comparison too
        raise ValueError(f"{name} holds values from {low:g} to {high:g}; pixels in [0, 1] are needed")


def _check_classes(name: str, classes: np.ndarray | None, images: int) -> None:
    if classes is not None and (classes.shape != (images,) or int(classes.min()) < 0):
        raise ValueError(f"{name} is {classes.tolist()}; expected {images} class numbers from 0")
