"""The trainings that explain a defence: what each is trained on, and what it leaves alone."""

from dataclasses import replace

import pytest
import torch
from tiny_runs import SCHEDULE, loop_config, setup_of

from stages.training import ablations
from stages.training.ablations import PARTS, train_part
from stages.training.adapter import Learner
from stages.training.batches import TrainingBatch
from stages.training.rounds import run_serially


def setup(root, norm: str = "Linf"):
    return setup_of(root, loop_config(norm, schedule=replace(SCHEDULE, rounds=4)))


def changed(robust, untrained) -> set[str]:
    """The parts of the robust classifier whose weights are not those it was built with."""
    before = untrained.state_dict()
    return {name.split(".")[0] for name, value in robust.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_trains_what_it_says(part, tmp_path):
    made = setup(tmp_path)
    said = []
    robust = train_part(part, made, share=0.5, name="part", progress=said.append)
    assert said[-1] in (f"{part}: round 2 of 2", f"{part}: update {made.schedule.updates // 2} of {len(said)}")
    both = part == "adversarial training"
    assert changed(robust, made.build()) == ({"adapter", "classifier"} if both else {"adapter"})
    assert not any(module.training for module in robust.modules())


def test_the_defence_at_full_budget_is_the_run_itself(tmp_path):
    made = setup(tmp_path)
    run_serially(made)
    robust = train_part("defence", made, share=1.0, name="part")
    version = made.versions.find(4)
    assert version is not None
    last = version.weights
    assert all(torch.equal(value, last[name]) for name, value in robust.state_dict().items() if name in last)


def batches_of(part, made, monkeypatch) -> list[TrainingBatch]:
    """What a training without the defence's own adversaries is given."""
    seen, update = [], Learner.update

    def watch(learner: Learner, batch: TrainingBatch) -> None:
        seen.append(batch)
        update(learner, batch)

    monkeypatch.setattr(ablations, "load_trained", lambda robust, weights: robust)
    monkeypatch.setattr(Learner, "update", watch)
    train_part(part, made, share=1.0, name="part")
    return seen


@pytest.mark.parametrize("part", ["denoising only", "vanilla adversaries"])
def test_images_are_augmented_where_those_of_the_defence_are(part, tmp_path, monkeypatch):
    config = replace(loop_config(schedule=replace(SCHEDULE, rounds=2)), augment=True)
    made = setup_of(tmp_path, config)
    seen = torch.cat([batch.clean for batch in batches_of(part, made, monkeypatch)])
    originals = torch.from_numpy(made.train.images).float() / 255
    same = (seen[:, None] == originals[None]).flatten(2).all(2).any(1).float().mean()
    assert same < 0.2  # 1 of 162 augmentations leaves an image as it is


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("part", ["denoising only", "vanilla adversaries"])
def test_states_lie_in_the_ball_and_only_adversaries_fool_the_classifier(part, norm, tmp_path, monkeypatch):
    made = setup(tmp_path, norm)
    seen = batches_of(part, made, monkeypatch)
    assert len(seen) == made.schedule.updates
    states, clean = (torch.cat([getattr(batch, name) for batch in seen]) for name in ("states", "clean"))
    labels = torch.cat([batch.labels for batch in seen])
    difference = (states - clean).flatten(1)
    length = difference.abs().amax(1) if norm == "Linf" else difference.norm(dim=1)
    assert length.max() <= made.config.threat.radius + 1e-6
    assert length.min() > 0
    wrong = [(made.classifier(images).argmax(1) != labels).float().mean().item() for images in (clean, states)]
    if part == "denoising only":
        assert wrong[1] - wrong[0] < 0.15
    else:
        assert wrong[1] - wrong[0] > 0.3
