"""Names of models: other answers, other names; other devices and precisions, the same."""

import pytest
import torch
from defended_models import undefended
from torch import Tensor, nn

from stages.data.datasets import DataConfig, load_data
from stages.evaluation.naming import model_identity

IMAGES = torch.from_numpy(load_data(DataConfig(name="digits")).test.images[:4])


class Hidden(nn.Module):
    """Answers by what no name can hold: the state of a library, say."""

    def __init__(self, model: nn.Module, where: str) -> None:
        super().__init__()
        self.model, self.where = model, where

    def forward(self, images: Tensor) -> Tensor:
        on_grid = ((255 * images - (255 * images).round()).abs() < 1e-3).flatten(1).all(1)
        there = on_grid if self.where == "on the grid" else ~on_grid
        sign = torch.tensor(torch.get_default_dtype() == torch.float32).float() * 2 - 1
        return self.model(images) * torch.where(there, sign, 1.0)[:, None]


@pytest.mark.parametrize("where", ["on the grid", "off the grid"])
def test_answers_on_and_off_the_clean_images_are_in_the_name(where):
    model = Hidden(undefended(), where).eval()
    before = model_identity(model, IMAGES)
    torch.set_default_dtype(torch.float64)
    try:
        after = model_identity(model, IMAGES)
    finally:
        torch.set_default_dtype(torch.float32)
    assert before["model"] == after["model"]
    assert before["answers"] != after["answers"]


class Rounded(nn.Module):
    """A stand-in for another device: the same networks with 8-bit mantissas, where asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.is_autocast_enabled("cpu")):
            return self.model(images)


def test_precision_and_threads_are_not_in_the_name():
    model = Rounded(undefended()).eval()
    name = model_identity(model, IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        assert model_identity(model, IMAGES) == name
    assert {-1, *range(10)} >= set(name["answers"])  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
    assert len(set(name["answers"])) > 2  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]


def test_the_answers_of_a_random_model_are_the_same_at_every_call():
    model = nn.Sequential(undefended(), nn.Dropout(0.5))
    model[1].forward = lambda logits: logits + torch.randn_like(logits)  # pyright: ignore
    state = torch.get_rng_state()
    assert model_identity(model, IMAGES) == model_identity(model, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
