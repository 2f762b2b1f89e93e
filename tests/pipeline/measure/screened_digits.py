"""The digits, a model of them, and a quick screening of whatever a user hands in instead."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluated_models
from torch import Tensor, nn
from unchecked import unchecked_types

from pipeline.evaluate import EvaluateSettings, evaluate_model
from pipeline.tell.results import Results
from stages.data.datasets import DataConfig, load_data

DIGITS = load_data(DataConfig(name="digits")).test
IMAGES, LABELS = DIGITS.images[:40], DIGITS.labels[:40]
MODEL = evaluated_models.build().eval()


class Changed(nn.Module):
    """The model with a change of its images or its logits."""

    def __init__(self, before: Callable = lambda images: images, after: Callable = lambda logits: logits) -> None:
        super().__init__()
        self.model, self.before, self.after = evaluated_models.build(), before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.model(self.before(images)))


def evaluate(model: Any, **given: Any) -> Results:
    """What `evaluate_model` says of what is given to it or to its settings."""
    passed = {name: given.pop(name) for name in ("data", "norm", "radius", "say") if name in given}
    with unchecked_types():
        return evaluate_model(model, **passed, settings=EvaluateSettings(**given))


def quick(model: Any, data: Any, root: Path, **given: Any) -> Results:
    given = {"norm": "Linf", "radius": 0.05, "images": 12, "say": lambda line: None} | given
    return evaluate(model, data=data, quick=True, root=root, **given)
