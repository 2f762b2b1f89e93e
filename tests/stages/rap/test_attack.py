"""Alg. 1 on the lattice: containment to the last bit, all states, every option, and segments that go on."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from attacked_models import Net, pictures, robust
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

THREATS = {"Linf": ThreatModel(norm="Linf", radius=0.2), "L2": ThreatModel(norm="L2", radius=1.0)}
STARTS = ("uniform", "gaussian", "none")
CONDITIONINGS = ("deployed", "state", "random")
ROWS = np.arange(8) * 11 + 3


def process_of(norm: str = "Linf", **options: object) -> AttackProcess:
    return AttackConfig(**{"steps": 6, **options}).process(THREATS[norm])  # pyright: ignore[reportArgumentType]


def start_of(process: AttackProcess, *, seed: int = 5) -> Tensor:
    return draw_start(process, seed, ROWS, (1, 8, 8))


def run(process: AttackProcess, model: RobustClassifier | None = None, **options: object) -> Trajectory:
    """The attack on the eight pictures, from their classes as the model sees them."""
    model = model or robust(steps=process.steps)
    labels = model(pictures().float() / 255).argmax(1)
    given = {"start": start_of(process), **options}
    return attack(model, pictures(), labels, process, **given)  # pyright: ignore[reportArgumentType]


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


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("conditioning", ["deployed", "state"])
@pytest.mark.parametrize("first", [1, 4])
def test_a_segment_that_goes_on_equals_one_made_at_once(norm, conditioning, first):
    process = process_of(norm, conditioning=conditioning)
    whole = run(process)
    taken = torch.full((8,), first)
    clean = process.lattice.from_bytes(pictures())
    begun = run(process, times=process.times(first))
    ended = run(process, start=begun.levels[-1] - clean, times=process.times(6 - first, taken))
    assert torch.equal(torch.cat([begun.levels, ended.levels[1:]]), whole.levels)
    assert torch.equal(torch.cat([begun.losses, ended.losses]), whole.losses)


def test_the_steps_already_taken_matter_where_the_adapter_is_given_them():
    for conditioning, equal in (("state", False), ("deployed", True)):
        process = process_of(conditioning=conditioning)
        fresh, warm = run(process), run(process, times=process.times(6, torch.full((8,), 2)))
        assert torch.equal(fresh.levels, warm.levels) == equal


@pytest.mark.parametrize(
    ("conditioning", "expected"), [("deployed", [6, 6, 6, 6, 6, 6]), ("state", [2, 3, 4, 5, 6, 7])]
)
def test_the_adapter_is_asked_at_the_t_of_the_conditioning(conditioning, expected):
    process, model = process_of(conditioning=conditioning), robust()
    labels = torch.zeros(8, dtype=torch.int64)
    attack(model, pictures(), labels, process, start_of(process), process.times(6, torch.full((8,), 2)))
    assert model.adapter.times() == expected  # pyright: ignore


def test_random_conditioning_covers_all_t_and_repeats_with_its_seed():
    process, model = process_of(conditioning="random"), robust()
    labels = torch.zeros(8, dtype=torch.int64)

    def attacked(seed: int) -> Tensor:
        return attack(model, pictures(), labels, process, start_of(process), process.times(6, labels, seed)).levels

    first = attacked(seed=1)
    asked = torch.stack([t for _, t in model.adapter.asked])  # pyright: ignore
    assert set(asked.unique().tolist()) == {1, 2, 3, 4, 5, 6}
    assert torch.equal(first, attacked(seed=1))
    assert not torch.equal(first, attacked(seed=2))


@pytest.mark.parametrize("norm", THREATS)
def test_the_batch_hardly_changes_a_trajectory(norm):
    # sums over a batch of another size may round otherwise and turn a sign at a gradient near zero
    process = process_of(norm)
    model, labels, start = robust(), torch.zeros(8, dtype=torch.int64), start_of(process)
    whole = attack(model, pictures(), labels, process, start).levels
    for size in (1, 3):
        parts = [
            attack(model, pictures()[part], labels[part], process, start[part])
            for part in (slice(first, first + size) for first in range(0, 8, size))
        ]
        joined = Trajectory.join(parts).levels
        assert (joined != whole).float().mean() < 0.01


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("start", STARTS)
def test_a_start_depends_on_seed_and_row_and_not_on_the_batch(norm, start):
    process = process_of(norm, start=start)
    drawn = start_of(process)
    alone = draw_start(process, 5, ROWS[3:4], (1, 8, 8))
    assert torch.equal(drawn[3:4], alone)
    assert torch.equal(drawn, start_of(process, seed=6)) == (start == "none")
    if start != "none":
        assert len({tuple(row.flatten().tolist()) for row in drawn}) == 8


def test_starts_have_the_distribution_of_their_name():
    rows = np.arange(500)
    linf = draw_start(process_of(), 0, rows, (1, 8, 8)).double()
    assert linf.abs().max() == 1020
    assert abs(linf.std() / 1020 - 3**-0.5) < 0.02
    gaussian = draw_start(process_of(start="gaussian", noise_scale=0.05, projection=False), 0, rows, (1, 8, 8))
    assert abs(gaussian.double().std() / 255 - 1) < 0.02
    length = draw_start(process_of("L2"), 0, rows, (1, 8, 8)).double().flatten(1).norm(dim=1) / 1020
    assert length.max() <= 1
    # uniform in a ball of 64 dimensions: the mean length is 64/65; truncation toward zero takes up to 1 %
    assert abs(length.mean() - 64 / 65) < 0.01


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


LINF, L2 = THREATS["Linf"], THREATS["L2"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttackConfig(steps=0), r"attack\.steps \(T\) is 0; an attack process needs at least 1 step"),
        (lambda: AttackConfig(batch=0), r"attack\.batch is 0; it must be at least 1"),
        (lambda: AttackConfig(threads=-1), r"attack\.threads is -1"),
        (lambda: AttackConfig(step_size=0.0), r"attack\.step_size is 0; it must be greater than 0"),
        (lambda: AttackConfig(step_size=float("nan")), r"attack\.step_size is nan"),
        (lambda: AttackConfig(noise_scale=-0.1), r"attack\.noise_scale is -0\.1"),
        (lambda: AttackConfig(step_size=0.21).process(LINF), r"larger than the ball \(threat\.radius 0\.2\)"),
        (lambda: AttackConfig(step_size=1.01).process(L2), r"larger than the ball \(threat\.radius 1\)"),
        (
            lambda: AttackConfig(start="none", noise_scale=0.1),
            r"noise_scale is 0\.1, but with attack\.start none there",
        ),
        (lambda: AttackConfig(noise_scale=0.3).process(LINF), r"attack\.noise_scale is 0\.3, larger than the ball"),
        (
            lambda: AttackConfig(step_size=0.0005).process(LINF),
            r"changes by more than 1 %; the nearest allowed are 2/5100 = 0\.000392157 and 3/5100 = 0\.000588235",
        ),
        (
            lambda: AttackConfig(noise_scale=0.0005).process(LINF),
            r"attack\.noise_scale is 0\.0005, which the lattice of 1/5100 changes by more than 1 %",
        ),
        (
            lambda: AttackConfig(step_size=0.0001).process(LINF),
            r"the nearest allowed are 1/5100 = 0\.000196078 and 2/5100",
        ),
        (
            lambda: AttackConfig().process(ThreatModel(norm="L2", radius=0.0015)),
            r"threat\.radius is 0\.0015, which the lattice of 1/1020",
        ),
        (lambda: AttackConfig(denominator=1000).process(LINF), "must be a multiple of 255 up to 16320"),
        (lambda: ThreatModel(radius=0.0), r"threat\.radius is 0; it must be greater than 0"),
        (lambda: ThreatModel(radius=8.0), r"divide a radius in 0\.\.255 by 255"),
    ],
)
def test_an_attack_that_makes_no_sense_is_refused_with_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@settings(deadline=None, max_examples=100)
@given(level=st.integers(1, 1020), error=st.floats(-0.02, 0.02))
def test_a_length_is_taken_exactly_when_the_grid_changes_it_by_at_most_one_percent(level, error):
    value = level / 5100 * (1 + error)
    nearest = max(1, round(value * 5100))
    changed = abs(nearest / 5100 - value) / value
    process = replace(AttackConfig(), step_size=min(value, 0.2))
    if value > 0.2:
        return
    if changed > 0.0101:
        with pytest.raises(ValueError, match="changes by more than 1 %"):
            process.process(LINF)
    elif changed < 0.0099:
        assert process.process(LINF).step == nearest


def test_the_default_step_is_two_and_a_half_radii_over_t():
    for steps, norm in itertools.product((1, 2, 3, 10, 40), THREATS):
        process = AttackConfig(steps=steps).process(THREATS[norm])
        assert process.step == round(min(2.5 / steps, 1) * process.bound)


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
