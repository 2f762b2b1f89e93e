"""The rivals of the time-to-robustness benchmark train, each within the ball that its method has."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loop_cost import setup_of
from rival_updates import Consistent
from rivals import RIVALS, InMemory, Rival
from torch.nn import functional

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


def test_a_ball_that_grows_ends_at_its_size(tmp_path: Path) -> None:
    rival = replace(RIVALS["persistent (ATTA)"], batch=32, restart=1.0, radius_ramp=0.5)  # each visit from noise
    setup, sizes = setup_of("digits", 1, str(tmp_path)), []
    loop = InMemory(setup, rival, updates=8)
    for _ in range(5):
        loop.kept.zero_()
        loop.update()
        sizes.append(int(loop.kept.abs().max()))
    bound = setup.config.attack.bound
    assert sizes == [bound // 4, bound // 2, bound * 3 // 4, bound, bound]


def test_an_update_moves_the_perturbation_on_which_it_trained(tmp_path: Path) -> None:
    rival = replace(RIVALS["persistent (ATTA)"], batch=32, moved_by_update=True)
    setup = setup_of("digits", 1, str(tmp_path))
    loop = InMemory(setup, rival, updates=2)
    noise = loop._start(first := next(loop._batches)).clone()
    loop.visits[:], loop._batches = 0, iter([first])
    loop.update()
    clean = loop.process.lattice.from_bytes(loop.images[first])
    low, high = loop.process.limits(clean)
    moved = (loop.kept[first] - ((clean + noise).clamp(low, high) - clean)).abs()
    assert moved.max() == loop.process.step


@pytest.mark.parametrize("name", ["persistent (ATTA)", "persistent, with consistency"])
def test_weights_are_perturbed_in_the_last_half_alone(name: str, tmp_path: Path) -> None:
    setup, ended = setup_of("digits", 1, str(tmp_path)), {}
    for strength in (0.0, 0.01):
        loop = InMemory(setup, replace(RIVALS[name], batch=32, weight_perturbation=strength), updates=8)
        for _ in range(4):
            loop.update()
        before = {name: value.clone() for name, value in loop.learner.weights().items()}
        loop.update()
        ended[strength] = before, {name: value.clone() for name, value in loop.learner.weights().items()}
    (before, plain), (same, perturbed) = ended.values()
    assert all(torch.equal(before[name], same[name]) for name in before)
    assert any(not torch.equal(plain[name], perturbed[name]) for name in plain)
    for name, value in perturbed.items():  # the move itself is taken back: what is left is an update's own
        assert (value - before[name]).abs().max() <= 2 * setup.config.train.learning_rate


def test_dropout_is_no_inconsistency(tmp_path: Path) -> None:
    setup, modes = setup_of("digits", 1, str(tmp_path)), []
    both = replace(setup.config, train=replace(setup.config.train, what="both"))
    loop = InMemory(replace(setup, config=both), replace(RIVALS["FGSM-PGI"], batch=32), updates=4)
    assert any(isinstance(module, torch.nn.Dropout) for module in loop.learner.robust.classifier.modules())
    loop.learner.robust.classifier.register_forward_hook(lambda net, *rest: modes.append(net.training))
    for _ in range(4):
        loop.update()
    assert len(modes) > 4
    assert not any(modes)


def test_smoothing_changes_the_gradient_as_pytorchs_smoothed_labels_do(tmp_path: Path) -> None:
    setup, gradients, expected = setup_of("digits", 1, str(tmp_path)), [], []
    clean, labels = torch.from_numpy(setup.train.images[:32]) / 255, torch.from_numpy(setup.train.labels[:32])
    batch = TrainingBatch(states=clean, clean=clean, labels=labels, t=torch.ones_like(labels))
    for smoothing in (0.0, 0.2):
        rival = replace(RIVALS["FGSM-PGI"], weight_perturbation=0.0, smoothing=smoothing)
        learner = InMemory(setup, rival, updates=1).learner
        assert isinstance(learner, Consistent)
        loss = functional.cross_entropy(learner._deployed_logits(clean), labels, label_smoothing=smoothing)
        expected.append(torch.autograd.grad(loss, learner.parameters))
        learner.begin(clean.clone(), labels)
        learner.update(batch)
        gradients.append([weight.grad for weight in learner.parameters])
    for plain, smoothed, one, other in zip(*gradients, *expected, strict=True):
        torch.testing.assert_close(smoothed - plain, other - one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"smoothing": 0.1},
        {"consistency": 1.0, "moved_by_update": True},
        {"smoothing": 0.1, "consistency": 1.0, "weight_perturbation": 0.01},
    ],
)
def test_an_option_that_would_not_be_used_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"consistency|where weights are perturbed"):
        Rival(source="none", **settings)
