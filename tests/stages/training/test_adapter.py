"""The learner: one update, what it depends on, and that it goes on exactly where it stopped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_learners import CONFIGS, IMAGES, batch_of, copied, learner_of, same, trained, updated
from tiny_runs import TRAIN, Small
from torch.nn import functional

from stages.rap.objective import ObjectiveConfig
from stages.training.adapter import Learner
from stages.training.batches import TrainingBatch
from stages.training.diverged import DivergedError


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_learner_goes_on_bit_for_bit_from_its_state(config, tmp_path):
    whole = learner_of(config)
    trained(whole, range(4))
    torch.save(whole.state(), tmp_path / "state")
    wanted = trained(whole, range(4, 8))
    torch.manual_seed(99)  # another process has other random numbers
    resumed = learner_of(config)
    resumed.load_state(torch.load(tmp_path / "state", weights_only=True))
    assert str(trained(resumed, range(4, 8))) == str(wanted)
    assert resumed.updates == 8
    assert same(resumed.weights(), whole.weights())
    assert same(resumed.shipped(), whole.shipped())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_only_what_is_trained_changes(config):
    learner = learner_of(config)
    before = copied(dict(learner.robust.state_dict()))
    trained(learner, range(3))
    parts = {"adapter": ("adapter",), "classifier": ("classifier",), "both": ("adapter", "classifier")}[config.what]
    changed = {name for name, value in learner.robust.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == set(parts)
    assert set(learner.weights()) == {name for name in before if name.split(".")[0] in parts}
    assert not any(module.training for module in learner.robust.modules())


def test_the_loss_falls_on_the_digits():
    learner = learner_of(updates=60)
    figures = trained(learner, range(60))
    first, last = figures[:8], figures[-8:]
    assert np.mean([one["loss"] for one in last]) < 0.7 * np.mean([one["loss"] for one in first])
    assert np.mean([one["reconstruction"] for one in last]) < np.mean([one["reconstruction"] for one in first])


def test_a_classifier_alone_learns_adversarially():
    learner = learner_of(replace(TRAIN, what="classifier", learning_rate=1e-2), adapter=False, updates=60)
    figures = [updated(learner, batch_of(0, 64)) for _ in range(60)]
    first, last = figures[:8], figures[-8:]
    assert np.mean([one["cross_entropy"] for one in last]) < 0.7 * np.mean([one["cross_entropy"] for one in first])
    assert {name.split(".")[0] for name in learner.weights()} == {"classifier"}


def test_dropout_and_batch_norm_of_a_trained_classifier_are_in_training_mode_during_an_update_only():
    learner = learner_of(replace(TRAIN, what="both"))
    modes: list[bool] = []
    dropout = learner.robust.classifier.layers[4]  # pyright: ignore
    dropout.register_forward_hook(lambda *arguments: modes.append(dropout.training))  # pyright: ignore
    learner.update(batch_of(0))
    with torch.no_grad():
        learner.robust(IMAGES[:4])
    assert modes == [True, False]


def test_a_frozen_classifier_stays_in_eval_mode():
    learner = learner_of()
    modes: list[bool] = []
    net = learner.robust.classifier
    net.register_forward_hook(lambda *arguments: modes.append(net.training))
    learner.update(batch_of(0))
    assert modes == [False]


def test_dropout_is_a_function_of_seed_and_update_and_leaves_the_callers_random_numbers():
    config = replace(TRAIN, what="classifier")
    state = torch.get_rng_state()
    first = updated(learner_of(config), batch_of(0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert str(updated(learner_of(config), batch_of(0))) == str(first)
    assert updated(learner_of(config, seed=1), batch_of(0))["loss"] != first["loss"]
    later = learner_of(config)
    later.updates = 1
    assert updated(later, batch_of(0))["loss"] != first["loss"]


def test_the_average_starts_at_the_weights_and_follows_them():
    learner = learner_of(replace(TRAIN, ema=0.5))
    average = copied(learner.weights())
    for number in range(5):
        learner.update(batch_of(number))
        decay = min(0.5, (number + 1) / (number + 11))
        average = {name: decay * average[name] + (1 - decay) * value for name, value in learner.weights().items()}
    for name, value in learner.shipped().items():
        torch.testing.assert_close(value, average[name])
    assert not same(learner.shipped(), learner.weights())


def test_the_average_copies_what_is_no_floating_point_number():
    learner = learner_of(replace(TRAIN, what="classifier", ema=0.9))
    trained(learner, range(3))
    assert learner.shipped()["classifier.layers.2.num_batches_tracked"] == 60 + 3


def test_without_an_average_the_weights_themselves_are_shipped():
    learner = learner_of()
    assert same(learner.shipped(), learner.weights())


def test_new_weights_restart_the_average():
    learner, other = learner_of(replace(TRAIN, ema=0.9)), learner_of(replace(TRAIN, ema=0.9))
    trained(other, range(3))
    learner.load_weights(copied(other.weights()))
    assert same(learner.weights(), other.weights())
    assert same(learner.shipped(), other.weights())


def test_the_learning_rate_rises_linearly_and_falls_as_half_a_cosine_to_two_percent():
    learner, rates = learner_of(replace(TRAIN, learning_rate=1.0, warmup_updates=10), updates=100), []
    for update in range(101):
        learner.updates = update
        rates.append(learner.learning_rate())
    cosine = [0.02 + 0.49 * (1 + np.cos(np.pi * update / 100)) for update in range(101)]
    assert rates[10:] == pytest.approx(cosine[10:])
    assert rates[:10] == pytest.approx([cosine[update] * (update + 1) / 10 for update in range(10)])
    assert rates[100] == pytest.approx(0.02)
    learner.update(batch_of(0))
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.02)


@pytest.mark.parametrize(("conditioning", "expected"), [("deployed", {4}), ("state", {1, 2, 3, 4})])
def test_the_adapter_is_given_the_t_of_the_conditioning(conditioning, expected):
    learner = learner_of(replace(TRAIN, conditioning=conditioning))
    asked: list[int] = []
    learner.robust.adapter.register_forward_hook(lambda net, given, out: asked.extend(given[1].tolist()))  # pyright: ignore
    learner.update(batch_of(0, 64))
    assert set(asked) == expected


def test_the_kl_term_compares_with_the_clean_images_and_is_weighted():
    batch = batch_of(0)
    clean = replace(batch, states=batch.clean, t=torch.full_like(batch.t, 4))
    config = replace(TRAIN, objective=ObjectiveConfig(reconstruction=0.0, kl=2.0))
    assert updated(learner_of(config), clean)["kl"] == pytest.approx(0, abs=1e-6)
    figures = updated(learner_of(config), batch)
    assert figures["kl"] > 1e-3
    assert figures["loss"] == pytest.approx(figures["cross_entropy"] + 2 * figures["kl"], rel=1e-5)


def test_the_consistency_term_compares_with_the_starts_of_the_visits_and_is_weighted():
    batch = batch_of(0)
    same_twice = replace(batch, states=batch.starts)
    config = replace(TRAIN, objective=ObjectiveConfig(reconstruction=0.0, consistency=2.0))
    assert updated(learner_of(config), same_twice)["consistency"] == pytest.approx(0, abs=1e-9)
    figures = updated(learner_of(config), batch)
    assert figures["consistency"] > 1e-6
    assert figures["loss"] == pytest.approx(figures["cross_entropy"] + 2 * figures["consistency"], rel=1e-5)
    with pytest.raises(ValueError, match="needs start_logits"):
        learner_of(config).update(replace(batch, starts=None))


def test_a_share_of_consistency_looks_at_the_first_starts_alone():
    batch = batch_of(0)
    count = round(0.25 * len(batch.states))
    config = replace(TRAIN, objective=ObjectiveConfig(reconstruction=0.0, consistency=2.0, consistency_share=0.25))
    whole = updated(learner_of(config), batch)
    assert batch.starts is not None
    others = torch.cat([batch.starts[:count], torch.rand_like(batch.starts[count:])])
    assert updated(learner_of(config), replace(batch, starts=others)) == whole
    alone = replace(batch, **{name: value[:count] for name, value in vars(batch).items()})
    every = replace(config, objective=replace(config.objective, consistency_share=1.0))
    assert whole["consistency"] == pytest.approx(updated(learner_of(every), alone)["consistency"], rel=1e-4)


def test_the_weight_of_the_consistency_term_follows_the_updates():
    config = replace(TRAIN, objective=ObjectiveConfig(reconstruction=0.0, consistency=2.0, consistency_ramp=0.5))
    learner, batch = learner_of(config), batch_of(0)
    for update in range(1, learner.total_updates + 1):
        figures = updated(learner, batch)
        weight = 2 * min(1.0, update / (0.5 * learner.total_updates))
        assert figures["loss"] == pytest.approx(
            figures["cross_entropy"] + weight * figures["consistency"], rel=1e-5, abs=1e-6
        )
    assert learner.total_updates > 2


def test_the_gradient_is_that_of_weights_that_were_moved_against_the_batch_and_come_back():
    config = replace(TRAIN, optimizer="sgd", weight_perturbation=0.02, perturbed_share=1.0)
    learner, by_hand, batch = learner_of(config), learner_of(replace(config, weight_perturbation=0.0)), batch_of(0)
    trained(begun := learner_of(), range(5))  # a new adapter's last layer is zero, and so are other gradients
    for each in (learner, by_hand):
        each.load_weights(begun.weights())
    before = copied(learner.weights())
    loss = functional.cross_entropy(by_hand.robust(batch.states), batch.labels)
    gradients = torch.autograd.grad(loss, by_hand.parameters)
    with torch.no_grad():
        for weight, gradient in zip(by_hand.parameters, gradients, strict=True):
            if weight.ndim > 1:  # matrices and kernels; biases and scales stay
                weight += 0.02 * weight.norm() / gradient.norm().clamp_min(1e-12) * gradient
    moved = updated(by_hand, batch)
    figures = updated(learner, batch)
    assert figures == pytest.approx(moved, rel=1e-4)
    assert figures["cross_entropy"] > loss.item()
    rate = config.learning_rate / config.warmup_updates  # of the first update
    for name, weight in learner.robust.adapter.named_parameters():  # pyright: ignore[reportOptionalMemberAccess]
        assert weight.grad is not None
        expected = before[f"adapter.{name}"] - 1.9 * rate * weight.grad  # Nesterov's first step
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-3, atol=1e-6)


def test_weights_are_perturbed_in_the_last_updates_alone():
    learners = [learner_of(replace(TRAIN, weight_perturbation=strength), updates=8) for strength in (0.0, 0.05)]
    for update in range(8):
        figures = [updated(learner, batch_of(update)) for learner in learners]
        assert learners[1].config.perturbed_share == 0.5
        assert (figures[0] == figures[1]) == (update < 4)


def test_weights_whose_perturbation_is_no_number_stay_as_they_are():
    learner, batch = learner_of(replace(TRAIN, weight_perturbation=0.05, perturbed_share=1.0)), batch_of(0)
    before = copied(learner.weights())
    learner.update(replace(batch, states=batch.states * torch.nan))
    with pytest.raises(DivergedError):
        learner.measured()
    assert all(torch.equal(before[name], value) for name, value in learner._weights.items())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_an_update_waits_for_nothing(config, waiting):
    learner, batch = learner_of(config), batch_of(0)
    learner.update(batch)  # the optimizer makes its state
    with waiting() as device:
        learner.update(batch)
    assert device.asked == []
    with waiting() as device:
        float(batch.states.mean())
        batch.states[batch.t > 1]
    assert device.asked == ["_local_scalar_dense", "index"]


def test_an_update_runs_on_tensors_without_values(monkeypatch):
    """On PyTorch's meta device whatever looks at a value, or copies one to the host, raises."""
    learner, batch = learner_of(replace(TRAIN, ema=0.9, clip_norm=1.0)), batch_of(0)
    learner.robust.to("meta")
    meta = Learner(learner.robust, learner.config, total_updates=40, seed=0)
    monkeypatch.setattr(meta.optimizer, "step", lambda: None)  # whose kernels do not exist there
    meta.update(TrainingBatch(**{name: value.to("meta") for name, value in vars(batch).items()}))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        meta.measured()


def test_a_gradient_is_clipped_to_its_bound():
    learner = learner_of(replace(TRAIN, optimizer="sgd", clip_norm=1e-3, warmup_updates=0, learning_rate=1.0))
    before = copied(learner.weights())
    learner.update(batch_of(0))
    moved = torch.cat([(value - before[name]).flatten() for name, value in learner.weights().items()])
    # Nesterov's first step is the gradient and 0.9 of it again
    assert float(moved.norm()) == pytest.approx(1.9e-3, rel=1e-3)


def test_bfloat16_updates_keep_float32_weights_and_losses():
    learner = learner_of(replace(TRAIN, precision="bfloat16"))
    figures = updated(learner, batch_of(0))
    assert {value.dtype for value in learner.weights().values()} == {torch.float32}
    assert figures["loss"] == pytest.approx(updated(learner_of(), batch_of(0))["loss"], rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, r"train\.learning_rate is 0; it must be greater than 0"),
        ({"ema": 1.0}, r"train\.ema is 1; it must lie in \[0, 1\)"),
        ({"weight_perturbation": -0.1}, r"train\.weight_perturbation is -0\.1; it must lie in \[0, 1\)"),
        ({"perturbed_share": 0.0}, r"train\.perturbed_share is 0; it is a share in \(0, 1\]"),
        ({"warmup_updates": -1}, r"train\.warmup_updates is -1; it must be at least 0"),
        ({"threads": 0}, r"train\.threads is 0"),
        ({"workers": 0}, r"train\.workers is 0"),
        ({"cache_passes": 0}, r"train\.cache_passes is 0"),
        ({"weight_decay": -1.0}, r"train\.weight_decay is -1"),
        ({"clip_norm": -1.0}, r"train\.clip_norm is -1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TRAIN, **change)


def test_the_tests_classifier_has_what_training_mode_changes():
    assert any(isinstance(module, torch.nn.BatchNorm1d) for module in Small().modules())
    assert any(isinstance(module, torch.nn.Dropout) for module in Small().modules())
