import json
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
from defended_models import (
    KNOWN,
    PAIR_THREAT,
    THREAT,
    Contrast,
    adversarially_trained,
    pair,
    train_cnn,
    undefended,
    unseen_digits,
)
from known_models import largest_margins
from unchecked import unchecked_types

from stages.evaluation.accuracy import to_float
from stages.evaluation.attacks import AttackResult
from stages.evaluation.checks.all_checks import Examination, make_case, run_checks
from stages.evaluation.checks.examined import CheckSize, Examined
from stages.evaluation.checks.strength import check_iterations, check_noise, check_order, check_undefended
from stages.evaluation.checks.transfer import check_square
from stages.evaluation.verdict import TOLERANCE, distances
from stages.nets.unet import UNET_SIZES, UNet
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel

SIZE = CheckSize(steps=40, restarts=2, queries=200, draws=40, inner=128)
TINY = CheckSize(
    images=6,
    steps=4,
    short_steps=2,
    restarts=2,
    queries=5,
    draws=3,
    gradient_images=4,
    binarized=4,
    inner=16,
    samples=2,
)

# What is flagged (warn or fail) on each model, and nothing else is. Reported only, or n.a. here: 1, 14, 16 to 20.
FLAGGED = {
    "certified": set(),
    "undefended": set(),
    "random layer": {10, 15},
    "quantiser": {2, 5, 6, 7, 8, 9, 10, 11, 13},
    "logits x 10,000": {2, 5, 6, 7, 8, 9, 10, 11},  # 13 climbs the logits' difference, which does not saturate
    "hard clamp": {2, 5, 6, 7, 8, 9, 10, 11, 13},
    "probabilities": {10},  # a softmax that has not saturated misleads no attack; that it is one is what is wrong
    "gradients inside": {2, 10, 15},  # 2: the step is a constant to autograd, and is none
}


def digits(count: int = 64, **known) -> Examined:
    images, labels = unseen_digits(count)
    known = {"model": undefended(), "threat": THREAT} | known
    return Examined(images=images, labels=labels, rows=np.arange(count), **known)


@cache
def examine(name: str) -> Examination:
    if name == "certified":
        images, labels = pair().test
        rows = np.arange(len(images))
        return run_checks(
            Examined(
                model=pair().certified,
                images=images,
                labels=labels,
                rows=rows,
                threat=PAIR_THREAT,
                undefended=pair().undefended,
            ),
            SIZE,
        )
    others = (train_cnn(1, epochs=6),)
    return run_checks(digits(model=KNOWN[name](), undefended=undefended(), others=others), SIZE)


@pytest.mark.parametrize("name", FLAGGED)
def test_each_check_flags_what_it_should_and_only_that(name):
    checks = examine(name).checks
    assert [check.number for check in checks] == list(range(1, 21))
    flagged = {check.number: check.figure for check in checks if check.verdict in ("warn", "fail")}
    assert set(flagged) == FLAGGED[name], flagged


@pytest.mark.parametrize("name", ["quantiser", "logits x 10,000", "hard clamp"])
def test_masked_gradients_fail_the_checks_that_look_behind_them(name):
    examination = examine(name)
    assert [examination.check(number).verdict for number in (5, 6, 7, 8, 9, 11)] == ["fail"] * 6


@pytest.mark.parametrize("name", ["quantiser", "logits x 10,000"])
def test_the_headline_is_not_fooled_by_masked_gradients(name):
    plain = next(result for result in examine(name).results if result.name == "PGD-40 x 2")
    assert plain.accuracy.value > 0.8
    assert examine(name).robust_accuracy.value < 0.1


def test_the_headline_of_a_linear_model_is_the_exact_robust_accuracy():
    images, labels = pair().test
    exact = largest_margins(pair().certified, images, labels, PAIR_THREAT.radius)
    assert exact.abs().min() > 1e-3
    assert np.array_equal(examine("certified").robust, (exact < 0).numpy())
    assert 0.8 < examine("certified").robust_accuracy.value < 1


def test_an_adversarially_trained_network_fails_no_check():
    size = replace(SIZE, restarts=CheckSize().restarts)  # with 2, PGD misses images that another backward pass finds
    examination = run_checks(digits(model=adversarially_trained(), undefended=undefended()), size)
    verdicts = {check.number: check.verdict for check in examination.checks}
    assert "fail" not in verdicts.values()
    assert {number for number, verdict in verdicts.items() if verdict == "warn"} <= {7, 10}  # Square may find an image
    assert examination.robust_accuracy.value > 0.3


@pytest.mark.parametrize("name", FLAGGED)
def test_what_counts_in_the_headline_lies_in_the_ball(name):
    examination = examine(name)
    images, _ = pair().test if name == "certified" else unseen_digits(64)
    threat = PAIR_THREAT if name == "certified" else THREAT
    assert len({result.name for result in examination.results}) == len(examination.results)
    for result in examination.results:
        adversarial = torch.from_numpy(result.adversarial)
        assert distances(adversarial, to_float(images), threat.norm).max() <= threat.radius + TOLERANCE
        assert 0 <= adversarial.min() <= adversarial.max() <= 1
        assert not (examination.robust & ~result.robust).any()


def test_checks_and_curves_can_be_written_as_json():
    for name in FLAGGED:
        json.dumps([asdict(check) for check in examine(name).checks], allow_nan=False)
        axes = [(curve.name, curve.x) for curve in examine(name).curves]
        assert len(set(axes)) == len(axes)  # no two lines of a plot have one label
        assert {curve.x for curve in examine(name).curves} >= {"gradient steps", "radius (pixels in [0, 1])"}


@pytest.mark.parametrize(("norm", "output"), [("Linf", "sigmoid"), ("L2", "residual")])
def test_every_check_runs_on_a_robust_classifier_in_both_norms(norm, output):
    torch.manual_seed(0)
    adapter = UNet(replace(UNET_SIZES["tiny"], output=output), channels=1)
    torch.nn.init.normal_(adapter.tail.weight, std=0.3)
    threat = ThreatModel(norm=norm, radius=0.2 if norm == "Linf" else 1.0)
    model = RobustClassifier(adapter, undefended(), steps=4, threat=threat).eval()
    heard = []
    examined = digits(8, model=model, threat=threat, undefended=undefended(), others=(train_cnn(1, epochs=6),))
    examination = run_checks(examined, TINY, progress=heard.append)
    run = {check.number for check in examination.checks if check.images}
    assert run >= {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20}
    # the true clamp's gradient, not the straight-through one, is the derivative
    assert examination.check(2).evidence["disagree"] == 0
    assert "through 3 surrogates" not in examination.check(9).figure  # no ReLU in the U-Net, but in the classifier
    assert [curve.x for curve in examination.curves][-1] == "t that the adapter is told"
    assert len(heard) == len(set(heard))
    assert model.steps == 4
    assert model.straight_through
    assert len(examination.robust) == 8


def test_the_same_call_gives_the_same_examination_and_leaves_the_model_and_random_numbers_alone():
    model = KNOWN["random layer"]()
    state = torch.random.get_rng_state()
    first, second = (run_checks(digits(8, model=model), TINY) for _ in range(2))
    assert [asdict(check) for check in first.checks] == [asdict(check) for check in second.checks]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())


def test_what_autoattack_and_others_broke_counts_and_what_was_not_examined_stands():
    count = 12
    earlier = np.ones(10, dtype=bool)
    earlier[9] = False
    blank = np.zeros((10, 1, 8, 8), np.float32)
    other = AttackResult(
        name="DeepFool",
        clean=np.ones(10, dtype=bool),
        robust=earlier,
        adversarial=blank,
        distance=np.zeros(10),
        refused=0,
        seconds=0.0,
    )
    broken_by = (None,) * 10 + ("apgd-ce", "square")
    examined = digits(count, model=adversarially_trained(), earlier=(other,), broken_by=broken_by, flags=("zero: 1",))
    examination = run_checks(examined, replace(TINY, images=6))
    unbroken = run_checks(digits(count, model=adversarially_trained()), TINY)
    assert not examination.robust[9:].any()
    assert np.array_equal(examination.robust[6:9], unbroken.robust[6:9])
    assert examination.check(7).verdict == "warn"
    assert examination.check(14).evidence["broken by this attack only"]["AutoAttack"] >= 1  # pyright: ignore
    assert "first 6 of the 12" in examination.check(14).says
    assert "zero: 1" in str(examination.check(10).evidence)


@pytest.fixture(scope="module")
def case():
    return make_case(digits(64), replace(TINY, images=64))


def with_results(case, **remaining):
    """The case with other verdicts for some of its attacks: the first so many images remain robust."""
    changed = {
        name: replace(getattr(case.white_box, name), robust=np.arange(64) < count) for name, count in remaining.items()
    }
    return replace(case, clean=np.ones(64, bool), white_box=replace(case.white_box, **changed))


def test_a_stronger_attack_that_breaks_less_fails(case):
    remaining = {"fgsm": 30, "short": 20, "long": 20, "restarted": 20}
    assert check_order(with_results(case, **remaining)).check.verdict == "pass"
    assert check_order(with_results(case, **remaining | {"fgsm": 18})).check.verdict == "pass"
    assert check_order(with_results(case, **remaining | {"fgsm": 17})).check.verdict == "warn"
    assert check_order(with_results(case, **remaining | {"fgsm": 15})).check.verdict == "fail"


def test_autoattack_that_misses_what_pgd_finds_fails(case):
    attacked = with_results(case, fgsm=30, short=20, long=20, restarted=20)

    def judged(remaining: int):
        verdicts = tuple(None if place < remaining else "apgd-ce" for place in range(64))
        return check_order(replace(attacked, examined=replace(attacked.examined, broken_by=verdicts))).check

    assert [judged(remaining).verdict for remaining in (18, 22, 23, 25)] == ["pass", "pass", "warn", "fail"]
    assert judged(18).figure.endswith("PGD-4 x 2 31.2 %, AutoAttack 28.1 %")


def test_an_attack_that_has_not_converged_fails(case):
    assert check_iterations(with_results(case, long=20, doubled=16)).check.verdict == "pass"
    assert check_iterations(with_results(case, long=20, doubled=15)).check.verdict == "fail"
    assert check_iterations(with_results(case, long=15, doubled=20)).check.verdict == "pass"


def test_attacks_that_do_not_break_an_undefended_classifier_fail(case):
    examined = replace(case.examined, undefended=undefended(), threat=ThreatModel(radius=0.01))
    assert check_undefended(replace(case, examined=examined)).check.verdict == "fail"
    examined = replace(case.examined, undefended=adversarially_trained(), threat=ThreatModel(radius=0.3))
    assert check_undefended(replace(case, examined=examined)).check.verdict in ("pass", "warn")
    assert check_undefended(case).check.verdict == "not applicable"


def test_a_few_images_that_only_square_breaks_are_a_warning(case):
    attacked = with_results(case, fgsm=22, short=22, long=22, restarted=22, doubled=22)
    square = replace(case.square, robust=(np.arange(64) < 40) & (np.arange(64) > 1))
    assert check_square(replace(attacked, square=square)).check.verdict == "warn"
    assert check_square(replace(attacked, square=replace(square, robust=np.arange(64) < 40))).check.verdict == "pass"


def test_noise_cannot_be_compared_where_nothing_is_broken(case):
    easy = replace(case.examined, threat=ThreatModel(radius=1e-4))
    changed = {name: replace(result, robust=case.clean) for name, result in vars(case.white_box).items()}
    right = replace(case, examined=easy, white_box=replace(case.white_box, **changed))
    assert check_noise(right).check.verdict == "not applicable"


def test_a_batch_dependent_model_is_told_from_a_random_one():
    class Centred(torch.nn.Module):
        def forward(self, images):
            return undefended()(images - images.mean(0, keepdim=True))

    check = run_checks(digits(8, model=Centred()), TINY).check(15)
    assert check.verdict == "warn"
    assert check.evidence["random"] is False
    assert check.evidence["depends on the batch"] is True


def test_a_contrast_stretch_without_a_clamp_in_its_backward_pass_is_seen_through():
    model = RobustClassifier(Contrast(), undefended(), steps=10, threat=THREAT, straight_through=True).eval()
    through = run_checks(digits(model=model), SIZE)
    assert through.check(2).verdict != "pass"  # the true derivative is zero, whatever attacks are given
    assert through.check(9).verdict == "pass"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 0}, "checks.size.images is 0; it must be at least 1"),
        ({"radii": 1}, "checks.size.radii is 1; it must be at least 2"),
        ({"steps": 20}, "fewer steps than the long one"),
    ],
)
def test_a_senseless_size_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CheckSize(**settings)


def test_verdicts_on_images_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="earlier verdicts cover 9 images, and there are 8"):
        digits(8, broken_by=(None,) * 9)
    with unchecked_types(), pytest.raises(ValueError, match="8 images, 8 labels and 3 rows"):
        replace(digits(8), rows=np.arange(3))
