"""The rivals of the time-to-robustness benchmark train, each within the ball that its method has."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loop_cost import setup_of
from rivals import RIVALS, InMemory

from stages.training.batches import TrainingBatch


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


def test_a_gentle_start_trains_on_clean_images_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = replace(RIVALS["PGD-10 with EMA"], clean_updates=2)
    loop, shares = InMemory(setup_of("digits", 1, str(tmp_path)), rival, updates=3), []

    def update(batch: TrainingBatch) -> None:
        shares.append(float((batch.states == batch.clean).flatten(1).all(1).double().mean()))

    monkeypatch.setattr(loop.learner, "update", update)
    for _ in range(3):
        loop.update()
    assert shares[0] == 1
    assert 0 < shares[1] < 1
    assert shares[2] == 0
