"""The losses of the attack, against hand-computed values and the official AutoAttack's."""

import math

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack
from torch import nn

from stages.rap.losses import ATTACK_LOSSES, cross_entropy, dlr, margin

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
LABELS = torch.tensor([0, 3, 2])


def test_margin_is_the_best_wrong_logit_minus_the_right_one():
    assert margin(LOGITS, LABELS).tolist() == [-1.0, 1.0, 0.0]


def test_dlr_divides_the_margin_by_the_spread_of_the_first_and_third():
    assert dlr(LOGITS, LABELS).tolist() == [-0.5, 0.5, 0.0]


@pytest.mark.parametrize("loss", ["dlr", "margin"])
def test_two_classes_have_a_margin_and_no_third_logit(loss: str):
    logits, labels = LOGITS[:, :2], torch.tensor([0, 1, 1])
    if loss == "margin":
        assert margin(logits, labels).tolist() == [-1.0, -3.0, 0.0]
        return
    with pytest.raises(ValueError, match="there are 2 classes: take margin or cross-entropy"):
        dlr(logits, labels)


def test_cross_entropy_is_one_value_an_image():
    expected = [
        math.log(sum(math.exp(x) for x in row)) - row[y] for row, y in zip(LOGITS.tolist(), LABELS, strict=True)
    ]
    assert cross_entropy(LOGITS, LABELS).tolist() == pytest.approx(expected, rel=1e-6)


def test_dlr_is_autoattacks():
    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.arange(200) % 10
    official = APGDAttack(nn.Identity(), eps=0.1, device="cpu")
    torch.testing.assert_close(dlr(logits, labels), official.dlr_loss(logits, labels))
    # rightly classified, wrongly classified, and near ties are all among them
    assert 5 < (margin(logits, labels) < 0).sum() < 195


def test_dlr_does_not_change_with_the_scale_of_the_logits():
    torch.testing.assert_close(dlr(LOGITS[:2] * 1e4, LABELS[:2]), dlr(LOGITS[:2], LABELS[:2]))


def test_the_reconstruction_is_added_for_the_attack_that_names_it():
    restored, clean = torch.full((3, 1, 2, 2), 0.75), torch.full((3, 1, 2, 2), 0.5)
    both = ATTACK_LOSSES["cross-entropy+reconstruction"](LOGITS, LABELS, restored, clean)
    plain = ATTACK_LOSSES["cross-entropy"](LOGITS, LABELS, restored, clean)
    torch.testing.assert_close(both, plain + 0.25)
    assert torch.equal(plain, cross_entropy(LOGITS, LABELS))
    assert torch.equal(ATTACK_LOSSES["dlr"](LOGITS, LABELS, restored, clean), dlr(LOGITS, LABELS))
    assert torch.equal(ATTACK_LOSSES["margin"](LOGITS, LABELS, restored, clean), margin(LOGITS, LABELS))
