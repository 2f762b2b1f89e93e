from itertools import count

import numpy as np
import pytest

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.claim import ClaimConfig, leaderboard, radius_text, robustbench_claim
from stages.evaluation.screening import ScreeningConfig, screen, sequential_interval
from stages.evaluation.verdict import ChunkVerdict
from stages.rap.threat import ThreatModel


def batch(*broken_by: str | None) -> ChunkVerdict:
    images = len(broken_by)
    return ChunkVerdict(
        broken_by=broken_by,
        adversarial=np.zeros((images, 1, 2, 2), np.float32),
        distance=np.zeros(images),
        flags=(),
        seconds={},
    )


def test_the_interval_covers_the_truth_at_every_look_at_once():
    random, looks = np.random.default_rng(0), (10, 20, 40, 80, 160)
    edges = [[sequential_interval(s, n) for s in range(n + 1)] for n in looks]
    for share in (0.5, 0.9):
        sums = (random.random((2000, looks[-1])) < share).cumsum(1)
        missed = np.zeros(2000, bool)
        for n, table in zip(looks, edges, strict=True):
            low, high = np.array(table)[sums[:, n - 1]].T
            missed |= (share < low) | (share > high)
        assert missed.mean() <= 0.05


def test_the_sequential_interval_is_wider_than_the_fixed_one_and_shrinks():
    for correct, images in ((0, 64), (32, 64), (64, 64), (450, 1000)):
        low, high = sequential_interval(correct, images)
        fixed = Accuracy(correct, images).interval
        assert 0 <= low <= fixed[0] + 1e-9
        assert 1 >= high >= fixed[1] - 1e-9
        assert low <= correct / images <= high
    widths = [np.diff(sequential_interval(n // 2, n))[0] for n in (10, 100, 1000)]
    assert widths[0] > widths[1] > widths[2]
    assert sequential_interval(0, 0) == (0, 1)


def test_a_screening_ends_when_its_interval_is_narrow_enough():
    drawn = count()
    batches = (batch(None, "apgd-ce", "clean", "apgd-t") for _ in drawn)
    lines: list[str] = []
    found = screen(batches, ScreeningConfig(half_width=0.1), progress=lines.append)
    low, high = found.interval
    assert found.ended == "interval"
    assert high - low <= 0.2
    assert found.robust.images == 4 * len(lines) == 4 * next(drawn)
    assert (found.robust.value, found.clean.value) == (0.25, 0.75)
    assert "at most 25.0 % robust" in str(found)


def test_a_screening_ends_when_time_is_up_or_images_are():
    assert screen([batch(None)] * 9, ScreeningConfig(seconds=1e-9)).robust.images == 1
    assert screen([batch(None)] * 9, ScreeningConfig()).ended == "images"
    with pytest.raises(ValueError, match="at least 1 image"):
        screen([], ScreeningConfig())


@pytest.mark.parametrize(
    ("data", "norm", "radius", "name"),
    [
        ("CIFAR-10", "Linf", 8 / 255, "cifar10"),
        ("CIFAR-10", "Linf", 0.0313725, "cifar10"),
        ("CIFAR-10", "L2", 0.5, "cifar10"),
        ("CIFAR-10", "L2", 8 / 255, None),
        ("CIFAR-10", "L1", 12.0, None),
        ("CIFAR-10", "Linf", 0.03, None),
        ("CIFAR-10 (JPEG q75)", "Linf", 8 / 255, None),
        ("MNIST", "Linf", 0.3, None),
        ("digits", "Linf", 8 / 255, None),
        ("own images", "Linf", 8 / 255, None),
    ],
)
def test_a_leaderboard_is_one_of_data_norm_and_radius(data, norm, radius, name):
    assert leaderboard(data, ThreatModel(norm=norm, radius=radius)) == name


def test_a_claim_has_robustbenchs_fields_and_calls_few_images_unreliable():
    clean, robust = Accuracy(90, 128), Accuracy(64, 128)
    claim = robustbench_claim(
        ClaimConfig(name="RAP", architecture="WRN-28-10"),
        dataset="cifar10",
        threat=ThreatModel(norm="Linf", radius=8 / 255),
        clean=clean,
        autoattack=robust,
        worst_case=Accuracy(60, 128),
        flags=("square: 1 of 128",),
    )
    assert list(claim) == [
        *("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue"),
        *("architecture", "eps", "clean_acc", "reported", "autoattack_acc", "footnote", "unreliable"),
    ]
    assert (claim["eps"], claim["clean_acc"], claim["reported"], claim["autoattack_acc"]) == (
        "8/255",
        "70.31",
        "46.88",
        "50.00",
    )
    assert claim["unreliable"] is True
    assert "square" in str(claim["footnote"])
    assert [radius_text(radius) for radius in (0.3, 0.2, 2 / 255, 12.0)] == ["0.3", "0.2", "2/255", "12"]
