"""The adapters that are compared: what is trained inside a classifier, and that others are built for one trial only."""

import copy

import pytest
import torch
from adapters import ADAPTERS, INSIDE, Corrected, config_of, corrected, normalised, weights_of

from stages.nets import unet
from stages.nets.cnn import CNN
from stages.rap.robust import RobustClassifier
from stages.rap.threat import ThreatModel
from stages.training.adapter import Learner, TrainConfig
from stages.training.batches import TrainingBatch


def test_corrections_begin_at_nothing_and_are_all_that_is_trained():
    torch.manual_seed(0)
    frozen = CNN(1, 8, 10, (0.5,), (0.5,)).eval()
    inside = corrected(copy.deepcopy(frozen), 20_000).eval()
    assert abs(weights_of(inside) - 20_000) < 1_000
    images, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    assert torch.equal(inside(images), frozen(images))
    robust = RobustClassifier(None, inside, steps=10, threat=ThreatModel(norm="Linf", radius=0.2))
    learner = Learner(robust, TrainConfig(what="classifier", learning_rate=1e-2), total_updates=2, seed=0)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    for _ in range(2):
        learner.update(TrainingBatch(states=images, clean=images, labels=labels, t=torch.full((16,), 10)))
    assert (inside(images) - frozen(images)).abs().max() > 1e-3
    layers = {name: layer for name, layer in inside.named_children() if isinstance(layer, Corrected)}
    assert sorted(layers) == ["conv1", "conv2", "fc1", "fc2"]
    for name, layer in layers.items():
        assert torch.equal(layer.frozen[0].weight, before[f"{name}.weight"])


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != INSIDE])
def test_an_adapter_answers_and_the_next_is_built_as_ever(name):
    norm = ADAPTERS[name].get("norm")
    with normalised(norm):
        adapter = unet.UNet(config_of(name), 1)
    assert adapter(torch.rand(2, 1, 8, 8), torch.tensor([1, 2])).shape == (2, 1, 8, 8)
    groups = [layer for layer in adapter.modules() if isinstance(layer, torch.nn.GroupNorm)]
    assert bool(groups) == (norm in (None, "one group"))
    assert {layer.num_groups for layer in groups} <= {1 if norm else 8}
    assert any(isinstance(layer, unet.GroupNorm) for layer in unet.UNet(unet.UNetConfig(), 1).modules())
