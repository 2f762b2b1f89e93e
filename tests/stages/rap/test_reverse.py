"""Alg. 2 and the clamp of the robust classifier."""

from itertools import pairwise

import pytest
import torch
from attacked_models import Adapter, Net, pictures, robust
from torch import nn

from stages.rap.reverse import reverse_times
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel

IMAGES = pictures().float() / 255
THREAT = ThreatModel(norm="Linf", radius=0.1)


@pytest.mark.parametrize(
    ("steps", "length", "expected"),
    [(1, 10, [10]), (2, 10, [10, 5]), (4, 10, [10, 8, 5, 2]), (3, 3, [3, 2, 1]), (10, 10, list(range(10, 0, -1)))],
)
def test_times_go_down_from_t_evenly(steps, length, expected):
    assert reverse_times(steps, length) == expected


@pytest.mark.parametrize("steps", [0, 11])
def test_more_steps_than_t_or_none_are_refused(steps):
    with pytest.raises(ValueError, match=rf"reverse_steps is {steps}; allowed are 1 to T = 10"):
        reverse_times(steps, 10)


def test_times_strictly_descend_and_never_reach_zero():
    for length in range(1, 30):
        for steps in range(1, length + 1):
            times = reverse_times(steps, length)
            assert len(times) == steps
            assert times[0] == length
            assert times[-1] >= 1
            assert all(later < earlier for earlier, later in pairwise(times))


def test_one_step_is_the_adapter_at_the_deployed_t():
    model = robust(steps=7)
    expected = Adapter()(IMAGES, torch.full((8,), 7)).clamp(0, 1)
    assert torch.equal(model.purify(IMAGES), expected)
    assert torch.equal(model(IMAGES), Net()(expected))
    assert model.adapter.times() == [7, 7]  # pyright: ignore


def stepwise(norm: str, radius: float) -> RobustClassifier:
    threat = ThreatModel(norm=norm, radius=radius)  # pyright: ignore[reportArgumentType]
    return robust(steps=10, reverse_steps=4, threat=threat, step_size=radius / 4)


def test_several_steps_ask_the_adapter_at_falling_t_and_attack_at_the_deployed_one_between():
    model = stepwise("Linf", 0.2)
    model.purify(IMAGES)
    expected = [10, *[10] * 8, 8, *[10] * 5, 5, *[10] * 2, 2]
    assert model.adapter.times() == expected  # pyright: ignore


@pytest.mark.parametrize(("norm", "radius"), [("Linf", 0.2), ("L2", 1.0)])
def test_states_that_are_attacked_again_stay_in_the_ball_around_the_restored_image(norm, radius):
    model = stepwise(norm, radius)
    model.purify(IMAGES)
    asked = [images for images, _ in model.adapter.asked]  # pyright: ignore
    for outer, steps in ((9, 8), (15, 5), (18, 2)):
        # the first question of an inner attack is at the restored image, the next outer one at its end
        restored, state = asked[outer - steps], asked[outer]
        moved = (state - restored).flatten(1)
        length = moved.abs().amax(1) if norm == "Linf" else moved.norm(dim=1)
        assert (length <= radius + 1e-6).all()
        assert length.max() > 0.4 * radius
        assert float(state.min()) >= -1e-6
        assert float(state.max()) <= 1 + 1e-6


def test_several_steps_are_deterministic_and_work_without_gradients_outside():
    model = stepwise("L2", 1.0)
    with torch.no_grad():
        first = model(IMAGES)
    assert torch.equal(first, model(IMAGES).detach())


class Scale(nn.Module):
    def forward(self, images: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.5 * images


def test_the_gradient_passes_all_steps_with_the_inner_attack_as_a_constant():
    model = RobustClassifier(Scale(), Net(), steps=4, reverse_steps=3, threat=THREAT, step_size=0.05)
    images = IMAGES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.purify(images).sum(), images)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.5**3))


class Overshoot(nn.Module):
    def forward(self, images: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 3 * images - 1


@pytest.mark.parametrize(("straight_through", "outside"), [(True, 3.0), (False, 0.0)])
def test_the_straight_through_clamp_passes_gradients_that_the_hard_one_stops(straight_through, outside):
    model = RobustClassifier(Overshoot(), Net(), steps=3, threat=THREAT, straight_through=straight_through)
    images = torch.tensor([0.1, 0.5, 0.9]).reshape(3, 1, 1, 1).requires_grad_()
    restored = model.restore(images, torch.full((3,), 3))
    torch.testing.assert_close(restored.detach().flatten(), torch.tensor([0.0, 0.5, 1.0]))
    (gradient,) = torch.autograd.grad(restored.sum(), images)
    assert gradient.flatten().tolist() == [outside, 3.0, outside]


def test_without_an_adapter_the_image_goes_straight_to_the_classifier():
    model = RobustClassifier(None, Net(), steps=3, threat=THREAT)
    assert torch.equal(model.purify(IMAGES), IMAGES)
    assert torch.equal(model(IMAGES), Net()(IMAGES))


def test_more_reverse_steps_of_a_finished_model_attack_within_the_ball_that_it_was_trained_in():
    model = robust(steps=10)
    several = model.with_reverse_steps(4)
    assert several.step_size == pytest.approx(2.5 * 0.1 / 10)
    several.purify(IMAGES)
    asked = [images for images, _ in several.adapter.asked]  # pyright: ignore
    moved = (asked[9] - asked[1]).abs().amax()  # over the first inner attack, of 8 steps
    assert 0.05 < moved <= 0.1 + 1e-6
    assert not torch.equal(several(IMAGES), model(IMAGES))


def test_a_step_never_leads_out_of_the_ball_by_default():
    assert robust(steps=1).step_size == 0.1


def test_a_robust_classifier_without_a_threat_model_or_with_a_step_of_0_is_refused():
    with pytest.raises(TypeError, match="threat"):
        RobustClassifier(None, Net(), steps=3)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match=r"step_size is 0\.0; it must be greater than 0"):
        robust(step_size=0.0)
    with pytest.raises(ValueError, match="several reverse steps attack in Linf or L2"):
        robust(threat=ThreatModel(norm="L1", radius=1.0)).with_reverse_steps(2)
