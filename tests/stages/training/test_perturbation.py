"""Weights that are moved along their gradients, and come back."""

import pytest
import torch
from tiny_learners import copied, learner_of

from stages.training.perturbation import moved_along_gradients


@pytest.mark.parametrize("gradient", [0.0, 1e-25])
def test_weights_without_a_gradient_are_not_moved(gradient):
    learner = learner_of()
    for weight in learner.parameters:
        weight.data *= 1e3  # so large that a tiny norm would make no number of the quotient
        weight.grad = gradient * weight.data
    before = copied(learner.weights())
    with moved_along_gradients(learner.parameters, 0.5):
        assert all(torch.allclose(before[name], weight, rtol=1e-6) for name, weight in learner.weights().items())


def test_a_weight_that_is_in_no_graph_stays():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    with moved_along_gradients([weight], 0.5):
        assert torch.equal(weight, torch.ones(2, 2))
