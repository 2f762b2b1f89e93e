import numpy as np
import pytest
from known_models import Digits, largest_margins, load_images, scaled, train_linear

from stages.evaluation.accuracy import Accuracy, clean_mask
from stages.evaluation.judge import JudgeConfig, judge
from stages.rap.threat import ThreatModel

THREAT = ThreatModel(radius=0.05)


@pytest.fixture(scope="module")
def digits():
    return load_images(10, 200)


@pytest.fixture(scope="module")
def model(digits: Digits):
    return train_linear(*digits, 10)


def ask(model, digits: Digits, **settings):
    return judge(model, *digits, np.arange(200) + 7, THREAT, JudgeConfig(**settings))


def test_the_judge_gives_the_same_verdict_twice(model, digits: Digits):
    first, second = ask(model, digits), ask(model.train(), digits)
    assert np.array_equal(first.mask, second.mask)
    assert model.training
    model.eval()


def test_robust_images_are_among_the_correct_ones(model, digits: Digits):
    verdict = ask(model, digits, images=None)
    assert verdict.clean == Accuracy.from_mask(clean_mask(model, *digits))
    assert 0 < verdict.robust.correct < verdict.clean.correct
    assert not (verdict.mask & ~clean_mask(model, *digits)).any()


def test_the_verdict_on_a_linear_model_of_ten_classes_is_the_exact_one(model, digits: Digits):
    exact = largest_margins(model, *digits, THREAT.radius).numpy()
    assert np.abs(exact).min() > 1e-4
    assert np.array_equal(ask(model, digits, images=None).mask, exact < 0)


def test_saturated_logits_do_not_change_the_verdict(model, digits: Digits):
    """Cross-entropy has no gradient there."""
    whole = ask(model, digits, images=None)
    assert np.array_equal(ask(scaled(model), digits, images=None).mask, whole.mask)


def test_a_sample_of_the_hold_out_is_fixed_named_and_judged_as_in_the_whole(model, digits: Digits):
    whole, sample = ask(model, digits, images=None), ask(model, digits, images=50)
    assert sample.robust.images == len(sample.rows) == 50
    assert not np.array_equal(sample.rows, np.arange(50) + 7)
    assert np.array_equal(sample.mask, whole.mask[sample.rows - 7])


def test_a_sample_larger_than_the_hold_out_is_the_hold_out(model, digits: Digits):
    assert np.array_equal(ask(model, digits, images=1000).rows, np.arange(200) + 7)


@pytest.mark.parametrize("settings", [{"images": 0}, {"every": 0}])
def test_a_judge_that_judges_nothing_is_refused(settings):
    with pytest.raises(ValueError, match="must be at least 1"):
        JudgeConfig(**settings)
