"""The rivals of the time-to-robustness benchmark train, each within the ball that its method has."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loop_cost import setup_of
from rivals import RIVALS, InMemory


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_trains_within_its_ball(name: str, tmp_path: Path) -> None:
    setup = setup_of("digits", 1, str(tmp_path))
    loop = InMemory(setup, replace(RIVALS[name], batch=32), updates=6)
    before = {key: value.clone() for key, value in loop.learner.weights().items()}
    for _ in range(6):
        loop.update()
    assert any(not torch.equal(before[key], value) for key, value in loop.learner.weights().items())
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in loop.learner.measured())
    bound = setup.config.attack.bound
    largest = max(int(loop.kept.abs().max()), round(float(loop.shared.abs().max()) * setup.config.attack.denominator))
    if name == "N-FGSM":  # noise of twice the radius and a step of one, without projection
        assert bound < largest <= 3 * bound
    else:
        assert 0 < largest <= bound


def test_a_universal_perturbation_is_one_for_all_images(tmp_path: Path) -> None:
    loop = InMemory(
        setup_of("digits", 1, str(tmp_path)), replace(RIVALS["one universal perturbation"], batch=32), updates=3
    )
    loop.update()
    first = loop.kept[:1].clone()
    loop.update()
    assert torch.equal(loop.kept, loop.kept[:1].expand_as(loop.kept))
    assert not torch.equal(loop.kept[:1], first)
