import pytest
import torch
from known_models import Wrapped, load_images, noisy, train_linear
from torch import nn

from stages.evaluation.accuracy import to_float
from stages.evaluation.contract import check_model

IMAGES, LABELS = load_images(10, 20)
MODEL = train_linear(IMAGES, LABELS, 10)


def changed(after):
    return Wrapped(MODEL, after=after).eval()


def test_a_model_that_returns_logits_passes():
    check_model(MODEL, to_float(IMAGES), LABELS, classes=10)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (changed(lambda logits: logits.softmax(1)), "returned probabilities"),
        (changed(lambda logits: logits.log_softmax(1)), "returned log-probabilities"),
        (changed(lambda logits: logits / 0), "NaN or infinity"),
        (changed(lambda logits: logits[:, :9]), r"\[20, 9\]; expected logits of shape \[20, 10\]"),
        (changed(lambda logits: logits[None]), r"\[1, 20, 10\]"),
        (changed(lambda logits: (logits, logits)), "returned a tuple"),
        (nn.Conv2d(3, 4, 3).eval(), r"raised RuntimeError on images of shape \[20, 1, 8, 8\].*3 channels"),
        (noisy(MODEL), "answers the same images differently"),
        (nn.Sequential(MODEL, nn.Dropout(0.5)), "in training mode"),
    ],
    ids=["probabilities", "log-probabilities", "nan", "classes", "axes", "tuple", "raises", "noise", "training"],
)
def test_a_model_that_no_attack_can_judge_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        check_model(model, to_float(IMAGES), LABELS, classes=10)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS, "divide uint8 images by 255"),
        (IMAGES.float(), LABELS, r"lie in \[0, 255\]"),
        (to_float(IMAGES) - 0.5, LABELS, "move normalisation into the model"),
        (to_float(IMAGES) / 0, LABELS, r"expected \[0, 1\]"),
        (to_float(IMAGES).permute(0, 2, 3, 1), LABELS, r"looks like \[image, height, width, channel\]"),
        (to_float(IMAGES), LABELS + 1, r"labels lie in \[1, 10\]; expected 0 to 9"),
        (to_float(IMAGES), LABELS[:3], "have shape"),
        (to_float(IMAGES)[0], LABELS[:1], "have shape"),
        (to_float(IMAGES)[:0], LABELS[:0], "at least one image"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        check_model(MODEL, images, labels, classes=10)


def test_a_part_in_training_mode_is_named():
    model = nn.Sequential(MODEL, nn.Identity()).eval()
    model[1].train()
    with pytest.raises(ValueError, match="1 is in training mode"):
        check_model(model, to_float(IMAGES), LABELS, classes=10)


def test_checking_takes_no_gradient():
    check_model(MODEL, to_float(IMAGES), LABELS, classes=10)
    assert all(weight.grad is None for weight in MODEL.parameters())
    assert torch.is_grad_enabled()
