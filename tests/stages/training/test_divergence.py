"""A training that diverges: its numbers never reach the weights, and nothing of it is handed out."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_learners import CONFIGS, batch_of, copied, learner_of, same, trained
from tiny_runs import TRAIN

from stages.training.adapter import Learner
from stages.training.diverged import DivergedError


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_loss_that_is_no_number_never_reaches_the_weights(config):
    learner = learner_of(replace(config, what="adapter"))
    trained(learner, range(2))
    before: Any = copy.deepcopy(learner.state())
    batch = batch_of(2, 32)
    learner.update(replace(batch, states=torch.full_like(batch.states, torch.nan)))
    with pytest.raises(DivergedError, match=r"in update 3 the loss was nan .* lower train\.learning_rate"):
        learner.measured()
    assert same(learner.weights(), before["weights"])
    moments = learner.optimizer.state_dict()["state"]
    assert all(same(moments[weight], kept) for weight, kept in before["optimizer"]["state"].items())


def test_a_gradient_that_is_no_number_is_found_beside_a_loss_that_is_one(monkeypatch):
    learner = learner_of()
    before = copied(learner.weights())
    learner.parameters[0].register_hook(lambda gradient: gradient * torch.inf)
    learner.update(batch_of(0))
    with pytest.raises(DivergedError, match=r"in update 1 the loss was \d.* norm of its gradient (nan|inf)"):
        learner.measured()
    assert same(learner.weights(), before)


@pytest.mark.parametrize("ask", [Learner.weights, Learner.shipped, Learner.state])
def test_nothing_of_a_training_that_diverged_is_handed_out(ask):
    batch, learner = batch_of(0), learner_of(replace(TRAIN, ema=0.9))
    learner.update(replace(batch, clean=torch.full_like(batch.clean, torch.inf)))
    learner.update(batch)
    with pytest.raises(DivergedError, match="in update 1"):
        ask(learner)
