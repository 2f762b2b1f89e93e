"""The objective of Alg. 3, against values computed by hand."""

import math

import pytest
import torch

from stages.rap.objective import ObjectiveConfig, objective

RESTORED = torch.tensor([[[[0.5, 0.25]]], [[[1.0, 0.0]]]])
CLEAN = torch.tensor([[[[0.0, 0.25]]], [[[0.5, 0.5]]]])
LOGITS = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
LABELS = torch.tensor([0, 1])
CROSS_ENTROPY = (math.log(2) + math.log(4)) / 2


def value(config: ObjectiveConfig, **others: torch.Tensor) -> tuple[float, dict[str, float]]:
    total, terms = objective(config, restored=RESTORED, clean=CLEAN, logits=LOGITS, labels=LABELS, **others)
    return total.item(), {name: term.item() for name, term in terms.items()}


def test_the_papers_objective_adds_both_terms_one_to_one():
    total, terms = value(ObjectiveConfig())
    assert terms == pytest.approx({"cross_entropy": CROSS_ENTROPY, "reconstruction": 1.5 / 4})
    assert total == pytest.approx(CROSS_ENTROPY + 1.5 / 4)


def test_the_squared_distance_is_a_mean_over_batch_and_pixels():
    total, _ = value(ObjectiveConfig(norm="l2", reconstruction=2.0))
    assert total == pytest.approx(CROSS_ENTROPY + 2 * 0.75 / 4)


def test_the_kl_term_is_that_of_the_clean_prediction_from_the_adversarial_one():
    clean_logits = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    _, terms = value(ObjectiveConfig(kl=1.0), clean_logits=clean_logits)
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert terms["kl"] == pytest.approx(first / 2, rel=1e-5)


def test_kl_is_zero_for_equal_logits():
    total, terms = value(ObjectiveConfig(reconstruction=0.0, cross_entropy=0.0, kl=6.0), clean_logits=LOGITS)
    assert terms["kl"] == pytest.approx(0, abs=1e-7)
    assert total == pytest.approx(0, abs=1e-6)
    assert "reconstruction" not in terms


def test_the_gradient_of_kl_flows_through_both_predictions():
    adversarial, clean = LOGITS.clone().requires_grad_(), torch.zeros(2, 2).requires_grad_()
    config = ObjectiveConfig(reconstruction=0.0, cross_entropy=0.0, kl=1.0)
    total, _ = objective(config, restored=RESTORED, clean=CLEAN, logits=adversarial, labels=LABELS, clean_logits=clean)
    total.backward()
    assert adversarial.grad is not None
    assert clean.grad is not None
    assert adversarial.grad[1].abs().sum() > 0
    assert clean.grad[1].abs().sum() > 0


def test_kl_without_the_clean_prediction_is_refused():
    with pytest.raises(ValueError, match="needs clean_logits"):
        value(ObjectiveConfig(kl=1.0))


def test_consistency_is_the_mean_squared_distance_of_the_logits_and_its_gradient_flows_through_both():
    here, before = LOGITS.clone().requires_grad_(), torch.ones(2, 2).requires_grad_()
    config = ObjectiveConfig(reconstruction=0.0, cross_entropy=0.0, consistency=4.0, kl=1e-9)
    others = {"clean_logits": LOGITS, "start_logits": before}
    total, terms = objective(config, restored=RESTORED, clean=CLEAN, logits=here, labels=LABELS, **others)
    assert terms["consistency"].item() == pytest.approx((3 + (math.log(3.0) - 1) ** 2) / 4)
    assert total.item() == pytest.approx(4 * terms["consistency"].item())
    total.backward()
    assert before.grad is not None
    assert torch.allclose(before.grad, 2 * (1 - LOGITS))
    assert here.grad is not None
    assert torch.allclose(here.grad, -before.grad, atol=1e-6)


def test_the_weight_of_consistency_rises_over_its_share_of_the_updates_and_stays():
    config = ObjectiveConfig(consistency=4.0, consistency_ramp=0.5, kl=2.0)
    assert [config.at(done).consistency for done in (0.0, 0.125, 0.25, 0.5, 1.0)] == [0.0, 1.0, 2.0, 4.0, 4.0]
    assert config.at(0.125).kl == 2.0
    assert ObjectiveConfig(consistency=4.0).at(0.0).consistency == 4.0


def test_consistency_without_the_starts_predictions_is_refused():
    with pytest.raises(ValueError, match="needs start_logits"):
        value(ObjectiveConfig(consistency=1.0))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"reconstruction": -1.0}, r"objective\.reconstruction is -1; weights must be at least 0"),
        ({"kl": float("nan")}, r"objective\.kl is nan"),
        ({"consistency": -2.0}, r"objective\.consistency is -2"),
        ({"consistency_ramp": 1.5}, r"objective\.consistency_ramp is 1\.5; it is a share in \[0, 1\]"),
        ({"consistency_share": 0.0}, r"objective\.consistency_share is 0; it is a share in \(0, 1\]"),
        ({"reconstruction": 0.0, "cross_entropy": 0.0}, "nothing would be learnt"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**weights)
