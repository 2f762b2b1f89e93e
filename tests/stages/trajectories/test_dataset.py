"""Stored trajectories as a torch data set: the bits that were attacked, filtered, in workers, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from generated_units import SPLIT, make, next_unit, process_of, unit_of
from torch.utils.data import DataLoader

from stages.storage import Storage
from stages.trajectories.dataset import Example, TrajectoryDataset
from stages.trajectories.generate import augmented
from stages.trajectories.ledger import Ledger
from stages.trajectories.shards import MissingShardError, Shard, pack_shard, shard_key, write_shard

SHIFTED = np.array([[position % 9, 8 - position % 9, position % 2] for position in range(12)], np.int16)


def write_run(root, *, norm: str = "Linf") -> list[Shard]:
    """Two cohorts with two visits each, augmented anew at the second."""
    shards: list[Shard] = []
    process = process_of(norm, steps=3)
    for number in range(2):
        unit = unit_of(process, first=12 * number, number=number, cohort=number, augmentation=SHIFTED, steps=3)
        first = make(unit, root)
        following = next_unit(unit, augmentation=SHIFTED[::-1].copy())
        shards += [first, make(following, root, first)]
    Ledger(Storage.at(root), "run").write(0, 1, [shard.row for shard in shards])
    return sorted(shards, key=lambda shard: (shard.row.round, shard.row.unit))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def shards(root):
    return write_run(root)


def of(root, **options) -> TrajectoryDataset:
    return TrajectoryDataset(root, **{"run": "run", "images": SPLIT, **options})


def attacked(shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and all states of a shard, float32, decoded here."""
    segments = shard.segments
    positions = SPLIT.positions(segments.index.numpy())
    clean = augmented(torch.from_numpy(SPLIT.images[positions]), segments.augmentation)
    lattice = segments.process.lattice
    states = segments.states(lattice.from_bytes(clean))
    return clean.float() / 255, lattice.to_float(states).transpose(0, 1)


def same(found: Example, image, state, label: int, row: int) -> bool:
    return bool(torch.equal(found.image, image) and torch.equal(found.state, state)) and found[2:] == (label, row)


@pytest.mark.parametrize("state", ["last", "all", 0, 1, 3])
def test_items_are_what_the_attacked_model_was_given(state, root, shards):
    data, number = of(root, state=state), 0
    for shard in shards:
        images, states = attacked(shard)
        rows = shard.segments.index.numpy()
        labels = SPLIT.labels[SPLIT.positions(rows)]
        for place in range(len(rows)):
            wanted = states[place] if state == "all" else states[place, 3 if state == "last" else state]
            assert same(data[number], images[place], wanted, int(labels[place]), int(rows[place]))
            number += 1
    assert number == len(data) == 48
    assert same(data[-1], *data[47])


def test_l2_trajectories_are_data_as_well(tmp_path):
    shards = write_run(tmp_path, norm="L2")
    assert torch.equal(of(tmp_path, state="all")[0].state, attacked(shards[0])[1][0])


def test_rounds_and_the_shards_of_items_can_be_named(root, shards):
    data = of(root, rounds=range(1, 2))
    assert len(data) == 24
    assert data.shards["round"].to_pylist() == [1, 1]
    names = data.shards["fingerprint"].to_pylist()
    assert [names[place] for place in data.shard_of([0, 11, 12, 23])] == [
        shards[number].row.fingerprint for number in (2, 2, 3, 3)
    ]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A run whose model was right about some states and wrong about others, and what it said of them."""
    root, random = tmp_path_factory.mktemp("mixed"), torch.Generator().manual_seed(0)
    said = []
    for shard in write_run(root):
        said.append(torch.rand(3, 12, generator=random) < 0.5)
        content = pack_shard(Shard(shard.row, replace(shard.segments, success=said[-1])))
        write_shard(Storage.at(root), shard.row.fingerprint, content)
    return root, torch.cat(said, dim=1)


@pytest.mark.parametrize(("state", "attacked"), [(0, 0), (1, 1), ("last", 2), ("all", 2)])
def test_filters_take_classes_and_states_that_fooled_the_attacked_weights(state, attacked, mixed):
    root, fooled = mixed
    everything = list(of(root, state=state))
    for success in (True, False):
        found = of(root, state=state, success=success, classes=range(7))
        wanted = [
            each
            for each, by in zip(everything, fooled[attacked], strict=True)
            if bool(by) == success and each.label < 7
        ]
        assert len(found) == len(wanted) > 0
        assert all(same(one, *other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_same_batches_with_and_without_workers(workers, root):
    data = of(root)
    loader = DataLoader(
        data,
        batch_size=7,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator().manual_seed(0),
    )
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    batches = list(loader)
    rows = torch.cat([batch.row for batch in batches])
    assert sorted(rows.tolist()) == sorted(example.row for example in data)
    assert len(order) == len(rows)
    for batch in batches:
        assert batch.state.shape[1:] == (1, 8, 8)
        assert torch.equal(batch.label, torch.from_numpy(SPLIT.labels[SPLIT.positions(batch.row.numpy())]))


def test_only_a_few_shards_are_kept_and_each_is_read_once_in_order(root, shards, monkeypatch):
    monkeypatch.setattr("stages.trajectories.dataset.RECENT", 1)
    data, read = of(root), []
    inner = Storage.get
    monkeypatch.setattr(Storage, "get", lambda self, key: read.append(key) or inner(self, key))
    list(data)
    assert read == [shard_key(shard.row.fingerprint) for shard in shards]


def test_a_damaged_shard_is_named_when_it_is_read(tmp_path):
    shards = write_run(tmp_path)
    data = of(tmp_path)
    Storage.at(tmp_path).delete([shard_key(shards[1].row.fingerprint)])
    assert data[0].row == SPLIT.rows[0]
    with pytest.raises(MissingShardError, match=shards[1].row.fingerprint):
        data[12]


def test_the_images_come_from_the_recipe_of_the_run(tmp_path, monkeypatch):
    write_run(tmp_path)
    with pytest.raises(ValueError, match=r"recipe\.json is not there: give the run's training images"):
        TrajectoryDataset(tmp_path, run="run")
    recipe = {"data": {"name": "digits", "train_images": 40, "holdout_images": 160, "root": None, "download": False}}
    Storage.at(tmp_path).put("runs/run/recipe.json", json.dumps({"recipe": recipe}).encode())
    assert same(TrajectoryDataset(tmp_path, run="run")[5], *of(tmp_path)[5])


REFUSED = {
    "another run": ({"run": "other"}, "no run 'other' has trained on anything below"),
    "rounds to come": ({"rounds": range(5, 9)}, r"written down rounds 0 to 1, and none of range\(5, 9\)"),
    "every other round": ({"rounds": range(0, 9, 2)}, "give a range without a step"),
    "a state that there is not": ({"state": 4}, "state is 4; these segments have states 0 to 3"),
    "True for a state": ({"state": True}, "state is True; give a number, 'last' or 'all'"),
    "a state in words": ({"state": "final"}, "give a number, 'last' or 'all'"),
    "other images": ({"images": SPLIT.take(np.arange(30))}, "attacked the images .* give the run's own training split"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_when_it_is_made(case, root, shards):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        of(root, **options)


def test_items_beyond_the_end_are_refused(root, shards):
    with pytest.raises(IndexError, match="items 48 to 48 were asked for; there are 48"):
        of(root)[48]
