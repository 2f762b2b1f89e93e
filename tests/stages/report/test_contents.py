import numpy as np
import pytest
from example_contents import least, pictures, trajectory

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.evidence import Check, Curve, Row, Table
from stages.report import Attacked, Broken, Pictures, TrajectoryPictures

CHECK = Check(1, "gradient", "pass", "0 of 8", images=8, says="True.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": ""}, "a report needs all three"),
        ({"worst_of": ()}, "at least one attack"),
        ({"clean": Accuracy(50, 128)}, "54 of 128 images right, but clean only 50"),
        ({"attacks": (Attacked(name="PGD-40", robust=Accuracy(53, 128)),)}, "but PGD-40 only 53"),
        ({"checks": (CHECK, CHECK)}, r"the checks \[1\] are there more than once"),
        ({"curves": (Curve(name="PGD", x="radius", points=()),)}, "at least one is needed"),
        ({"curves": (Curve(name="PGD", x="radius", points=((float("nan"), Accuracy(1, 2)),)),)}, "finite x"),
        (
            {"tables": (Table(name="T", caption="", columns=("a", "b"), rows=(Row(name="r", values=(1.0,)),)),)},
            "'r' of 'T' has 1 values for the 2 columns",
        ),
        ({"training": ({"round": 0},)}, "round and updates are needed"),
        ({"seconds": {"training": float("nan")}}, "a duration is finite"),
        ({"pictures": pictures(1, 8), "classes": ("zero", "one")}, "have class 3, but only 2 classes are named"),
        ({"trajectories": (trajectory(1, 8, 2),), "classes": ("zero",)}, "have class 2"),
    ],
)
def test_contents_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        least(**changes)


def test_an_attack_that_the_headline_does_not_count_may_be_stronger():
    least(attacks=(Attacked(name="twice the radius", robust=Accuracy(3, 128)),))


def test_images_are_broken_once():
    with pytest.raises(ValueError, match="of 10 images of 'm', 11 are said to be broken"):
        Broken(model="m", images=10, by={"apgd-ce": 9, "square": 2})


IMAGES = np.full((2, 3, 8, 8), 0.5, np.float32)
SIX = np.concatenate([IMAGES, IMAGES], 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversarial": IMAGES * 510}, r"pictures.adversarial holds values from 255 to 255; pixels in \[0, 1\]"),
        ({"clean": IMAGES * np.float32(np.nan)}, "pictures.clean holds values from nan"),
        ({"restored": IMAGES[:1]}, r"pictures.restored has the shape \[1, 3, 8, 8\]; expected \[2, 3, 8, 8\]"),
        ({"labels": np.array([1])}, "pictures.labels is .*; expected 2 class numbers"),
        ({"restored_predictions": np.array([1, -1])}, "pictures.restored_predictions"),
        ({"clean": SIX, "adversarial": SIX}, r"channels \(1 to 4\)"),
        ({"clean": IMAGES[:0], "adversarial": IMAGES[:0], "labels": np.array([], int)}, "at least one image"),
    ],
)
def test_pictures_that_cannot_be_shown_are_refused(changes, message):
    given = {"attack": "PGD", "clean": IMAGES, "adversarial": IMAGES, "labels": np.array([0, 1])}
    with pytest.raises(ValueError, match=message):
        Pictures(**{**given, **changes})


def test_a_trajectory_needs_a_restored_image_for_every_state():
    with pytest.raises(ValueError, match=r"trajectory.restored has the shape \[1, 3, 8, 8\]"):
        TrajectoryPictures(name="PGD", clean=IMAGES[0], label=0, states=IMAGES, restored=IMAGES[:1])


def test_distances_are_in_the_norm_of_the_threat():
    states = np.zeros((2, 1, 2, 2), np.float32)
    states[1] = 0.3
    steps = TrajectoryPictures(name="PGD", clean=states[0], label=0, states=states)
    assert steps.distances("Linf") == pytest.approx([0, 0.3])
    assert steps.distances("L2") == pytest.approx([0, 0.6])
