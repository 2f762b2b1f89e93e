"""Alg. 1 on the lattice: containment to the last bit, all states, every option."""

import numpy as np
import pytest
import torch
from attacked_models import Net, pictures, robust
from attacked_pictures import STARTS, THREATS, process_of, run, start_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.data.datasets import DataConfig, load_data
from stages.nets.unet import UNet, UNetConfig
from stages.rap.attack import Trajectory, attack
from stages.rap.losses import ATTACK_LOSSES
from stages.rap.norms import draw_start
from stages.rap.process import AttackConfig, AttackProcess
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel

CONDITIONINGS = ("deployed", "state", "random")


def difference(process: AttackProcess, states: Tensor) -> Tensor:
    """States minus clean images, in levels, as 64-bit integers [state, image, pixel]."""
    clean = process.lattice.from_bytes(pictures())
    return (states.long() - clean.long()).flatten(2)


def assert_contained(process: AttackProcess, trajectory: Trajectory) -> None:
    moved = difference(process, trajectory.levels)
    if not process.project:
        pass
    elif process.norm == "Linf":
        assert int(moved.abs().max()) <= process.bound
    else:
        assert int((moved**2).sum(2).max()) <= process.bound**2
    assert int(trajectory.levels.min()) >= 0
    assert int(trajectory.levels.max()) <= process.denominator


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("loss", ATTACK_LOSSES)
def test_every_state_of_every_attack_lies_in_the_ball_and_in_the_box(norm, start, conditioning, loss):
    process = process_of(norm, start=start, conditioning=conditioning, loss=loss)
    trajectory = run(process)
    assert_contained(process, trajectory)
    assert trajectory.levels.shape == (7, 8, 1, 8, 8)
    assert trajectory.losses.isfinite().all()
    assert trajectory.losses[-1].mean() > trajectory.losses[0].mean()


@settings(deadline=None, max_examples=40)
@given(
    norm=st.sampled_from(sorted(THREATS)),
    levels=st.integers(1, 1000),
    share=st.floats(0.02, 1),
    steps=st.integers(1, 5),
    start=st.sampled_from(STARTS),
    seed=st.integers(0, 2**64 - 1),
)
def test_containment_holds_for_any_radius_and_step(norm, levels, share, steps, start, seed):
    denominator = {"Linf": 5100, "L2": 1020}[norm]
    threat = ThreatModel(norm=norm, radius=levels / denominator)
    step_size = max(1, int(levels * share)) / denominator
    process = AttackConfig(steps=steps, step_size=step_size, start=start).process(threat)  # pyright: ignore
    assert_contained(process, run(process, start=start_of(process, seed=seed)))


@pytest.mark.parametrize("norm", THREATS)
def test_the_attack_fools_a_classifier_of_the_digits(norm):
    split = load_data(DataConfig(name="digits")).train.take(np.arange(200))
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    model = RobustClassifier(None, trained_linear(images, labels), steps=6, threat=THREATS[norm])
    process = process_of(norm)
    trajectory = attack(model, images, labels, process, draw_start(process, 0, split.rows, (1, 8, 8)))
    assert trajectory.success[0].float().mean() < 0.2
    assert trajectory.success[-1].float().mean() > 0.6
    assert (trajectory.losses[-1] > trajectory.losses[0]).float().mean() > 0.9


def trained_linear(images: Tensor, labels: Tensor) -> torch.nn.Module:
    """Least squares on the images."""
    design = torch.cat([images.flatten(1).double() / 255, torch.ones(len(images), 1)], 1)
    target = torch.nn.functional.one_hot(labels, 10).double() * 10
    solved = torch.linalg.lstsq(design.T @ design + 0.1 * torch.eye(65), design.T @ target).solution
    layer = torch.nn.Linear(64, 10)
    layer.weight.data, layer.bias.data = solved[:-1].T.float(), solved[-1].float()
    return torch.nn.Sequential(torch.nn.Flatten(), layer)


@pytest.mark.parametrize("norm", THREATS)
def test_no_state_is_further_than_a_step_from_the_one_before(norm):
    process = process_of(norm)
    steps = run(process).levels.long().diff(dim=0).flatten(2)
    if norm == "Linf":
        assert int(steps.abs().max()) == process.step
    else:  # truncation moves each pixel by less than one level
        assert float((steps**2).sum(2).max()) ** 0.5 < process.step + 64**0.5


def test_the_signs_are_those_of_the_gradient_and_replay_to_the_states():
    process, model = process_of(), robust()
    trajectory = run(process, model)
    assert trajectory.signs is not None
    labels = model(pictures().float() / 255).argmax(1)
    for step in range(6):
        state = process.lattice.to_float(trajectory.levels[step]).requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(state), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, state)
        assert torch.equal(trajectory.signs[step], gradient.sign().to(torch.int8))
        wanted = trajectory.levels[step].long() + process.step * gradient.sign().long()
        clean = process.lattice.from_bytes(pictures()).long()
        wanted = wanted.clamp(clean - process.bound, clean + process.bound).clamp(0, process.denominator)
        assert torch.equal(trajectory.levels[step + 1].long(), wanted)


@pytest.mark.parametrize("norm", THREATS)
def test_pixels_without_gradient_do_not_move(norm):
    process = process_of(norm, start="none")
    trajectory = run(process, robust(blind=2))
    moved = difference(process, trajectory.levels)
    assert not moved[:, :, ::2].any()
    assert moved[:, :, 1::2].any()
    assert (trajectory.zero_gradients >= 0.5).all()
    if trajectory.signs is not None:
        assert not trajectory.signs.flatten(2)[:, :, ::2].any()


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("start", STARTS)
def test_an_image_without_any_gradient_stays_at_its_start(norm, start):
    process = process_of(norm, start=start)
    trajectory = run(process, robust(blind=1))
    assert (trajectory.levels == trajectory.levels[0]).all()
    assert (trajectory.zero_gradients == 1).all()


@pytest.mark.parametrize("norm", THREATS)
def test_a_clean_start_is_the_clean_image(norm):
    process = process_of(norm, start="none")
    assert not difference(process, run(process).levels[:1]).any()


@pytest.mark.parametrize("norm", THREATS)
def test_images_at_both_ends_of_the_range_move_inward_only(norm):
    process = process_of(norm)
    moved = difference(process, run(process).levels)
    assert (moved[:, 0] >= 0).all()
    assert (moved[:, 1] <= 0).all()
    assert moved[:, 0].any()
    assert moved[:, 1].any()


@pytest.mark.parametrize("norm", THREATS)
def test_without_projection_states_leave_the_ball_but_not_the_box(norm):
    process = process_of(norm, projection=False, step_size=0.2, steps=12)
    trajectory = run(process)
    assert_contained(process, trajectory)
    moved = difference(process, trajectory.levels[-1:])
    if norm == "Linf":
        assert int(moved.abs().max()) > process.bound
    else:
        assert int((moved**2).sum(2).max()) > process.bound**2


def test_the_l2_projection_goes_toward_zero_on_the_grid():
    process = process_of("L2", start="none", step_size=1.0)
    trajectory = run(process, RobustClassifier(None, Net(), steps=6, threat=THREATS["Linf"]))
    moved = difference(process, trajectory.levels[-1:]).double()
    length = moved.norm(dim=2)[0, 3:] / process.bound
    assert (length <= 1).all()
    # each of 64 pixels loses less than a level, and the box may take more; the third image on is inside it mostly
    assert (length > 0.5).all()


def test_bfloat16_networks_still_make_states_in_the_ball():
    process = process_of(precision="bfloat16")
    trajectory = run(process)
    assert_contained(process, trajectory)
    assert trajectory.losses.dtype == torch.float32
    assert not torch.equal(trajectory.losses, run(process_of()).losses)


def test_success_and_loss_belong_to_the_states_that_were_attacked():
    process, model = process_of(), robust()
    trajectory = run(process, model)
    labels = model(pictures().float() / 255).argmax(1)
    for step in range(6):
        logits = model(process.lattice.to_float(trajectory.levels[step]))
        assert torch.equal(trajectory.success[step], logits.argmax(1) != labels)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        assert torch.equal(trajectory.losses[step], loss)


def test_the_attack_leaves_no_gradients_on_the_weights():
    model = robust()
    run(process_of(), model)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("loss", ATTACK_LOSSES)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_an_attack_step_waits_for_nothing(norm, loss, conditioning, waiting):
    process = process_of(norm, loss=loss, conditioning=conditioning, steps=2)
    start = start_of(process)
    model, labels = robust(steps=2), torch.arange(8)
    with waiting() as device:
        attack(model, pictures(), labels, process, start)
    assert device.asked == []


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("loss", ATTACK_LOSSES)
def test_an_attack_runs_on_tensors_without_values(norm, loss):
    """On PyTorch's meta device whatever looks at a value, or copies one to the host, raises."""
    process = process_of(norm, loss=loss, steps=2)
    model = RobustClassifier(UNet(UNetConfig(width=8), 1), Net(), steps=2, threat=THREATS[norm]).eval().to("meta")
    inputs = [tensor.to("meta") for tensor in (pictures(), torch.arange(8), start_of(process))]
    trajectory = attack(model, inputs[0], inputs[1], process, inputs[2])
    assert (trajectory.levels.device.type, trajectory.levels.shape) == ("meta", (3, 8, 1, 8, 8))
