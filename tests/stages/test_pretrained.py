"""The models that come with the package are what they say."""

import pytest
import torch

from pipeline.evaluate import prepare
from pipeline.evaluate_flags import parse
from stages.data.datasets import DataConfig, load_data
from stages.evaluation.pgd import PGDConfig, pgd_mask
from stages.rap.threat import ThreatModel
from stages.shipped import load_model


def test_the_digits_model_is_as_accurate_and_as_robust_as_its_card_says() -> None:
    model, test = load_model("pretrained:digits"), load_data(DataConfig(name="digits")).test
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    right = (model(images.float() / 255).argmax(1) == labels).float().mean()
    assert 0.96 < right < 1
    threat = ThreatModel(norm="Linf", radius=0.2)
    robust = pgd_mask(model, images[:100], labels[:100], threat, config=PGDConfig(steps=10), rows=test.rows[:100])
    assert 0.6 < robust.mean() < 0.9


def test_it_is_named_by_a_flag_and_brings_its_ball() -> None:
    prepared = prepare(parse(["--model", "pretrained:digits"]))
    assert prepared.threat == ThreatModel(norm="Linf", radius=0.2)
    with pytest.raises(ValueError, match="pretrained:cats is no model that comes with the package; there is digits"):
        prepare(parse(["--model", "pretrained:cats"]))
