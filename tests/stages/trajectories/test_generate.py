"""A unit becomes one committed shard: what names it, what it decodes to, and what is never committed."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from generated_units import SPLIT, THREATS, make, next_unit, process_of, small_model, unit_of

from stages.data.augmentation import augment, draw_augmentation
from stages.numerics import Arithmetic, DeviceMemoryError
from stages.rap.attack import attack
from stages.rap.norms import draw_start
from stages.storage import Storage
from stages.trajectories import shards
from stages.trajectories.archive import unpack
from stages.trajectories.generate import LossyShardError, Unit, generate_unit, last_states_checksum
from stages.trajectories.shards import read_shard, shard_key


def clean_of(unit: Unit) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of a unit, looked up row by row."""
    places = [SPLIT.rows.tolist().index(row) for row in unit.index]
    images = torch.from_numpy(SPLIT.images[places])
    if unit.augmentation is not None:
        images = augment(images, torch.from_numpy(unit.augmentation))
    return images, torch.from_numpy(SPLIT.labels[places])


def levels_of(unit: Unit) -> torch.Tensor:
    return unit.process.lattice.from_bytes(clean_of(unit)[0])


@pytest.mark.parametrize("callers", [2, 3])
def test_a_unit_does_not_depend_on_the_callers_threads(callers, tmp_path):
    unit = unit_of()
    wanted = make(unit, tmp_path / "one").row
    with Arithmetic(threads=callers).applied():
        row = make(unit, tmp_path / "more").row
        assert torch.get_num_threads() == callers
    assert (row.loss, row.last_states) == (wanted.loss, wanted.last_states)


AUGMENTED = np.stack([np.arange(12) % 9, np.arange(12) % 5, np.arange(12) % 2], 1).astype(np.int16)


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("start", ["uniform", "gaussian", "none"])
@pytest.mark.parametrize("augmentation", [None, AUGMENTED], ids=["plain", "augmented"])
def test_a_shard_holds_the_states_of_the_attack(norm, start, augmentation, tmp_path):
    unit = unit_of(process_of(norm, start=start), augmentation=augmentation)
    row = make(unit, tmp_path).row
    images, labels = clean_of(unit)
    noise = draw_start(unit.process, unit.start_seed, unit.index, (1, 8, 8))
    model = small_model()
    parts = [slice(0, 4), slice(4, 8), slice(8, 12)]  # as few even parts as batches of 5 allow
    wanted = [attack(model, images[part], labels[part], unit.process, noise[part]) for part in parts]
    states = torch.cat([trajectory.levels for trajectory in wanted], 1)
    shard = read_shard(Storage.at(tmp_path), unit.fingerprint)
    assert torch.equal(shard.segments.states(unit.process.lattice.from_bytes(images)), states)
    assert shard.row == row
    assert row.last_states == last_states_checksum(states[-1])
    assert row.loss == pytest.approx(torch.cat([one.losses for one in wanted], 1).double().mean(1).tolist())
    assert row.success == pytest.approx(torch.cat([one.success for one in wanted], 1).double().mean(1).tolist())
    assert (row.n, row.k, row.fresh, row.first_index, row.last_index) == (12, 6, 12, SPLIT.rows[0], SPLIT.rows[11])
    assert row.bytes == len((tmp_path / shard_key(unit.fingerprint)).read_bytes())
    assert json.loads(row.attack)["norm"] == norm


@pytest.mark.parametrize("norm", THREATS)
def test_a_uniform_linf_start_is_left_out_and_any_other_is_stored(norm, tmp_path):
    segments = make(unit_of(process_of(norm)), tmp_path).segments
    assert segments.start is None
    assert segments.start_seed == (2**64 - 5 if norm == "Linf" else None)


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("conditioning", ["deployed", "state"])
def test_a_visit_goes_on_where_the_one_before_ended(norm, conditioning, tmp_path):
    process = process_of(norm, conditioning=conditioning)
    first = unit_of(process, steps=2)
    second = next_unit(first, steps=3)
    before = make(first, tmp_path)
    after = make(second, tmp_path, before)
    assert after.row.parent == first.fingerprint
    assert after.row.fresh == 3
    ends, states = before.segments.states(levels_of(first))[-1], after.segments.states(levels_of(second))
    assert torch.equal(states[0, 3:], ends[3:])
    noise = draw_start(process, 77, second.index, (1, 8, 8))
    low, high = process.limits(levels_of(second))
    assert torch.equal(states[0, :3], (levels_of(second) + noise).clamp(low, high)[:3])
    # whoever goes on has the states of one attack of five steps
    whole = unit_of(process, steps=5)
    wanted = make(whole, tmp_path).segments.states(levels_of(whole))
    assert torch.equal(states[:, 3:], wanted[2:, 3:])


@pytest.mark.parametrize("norm", THREATS)
def test_an_augmented_visit_carries_the_perturbation_of_each_pixel_to_its_new_place(norm, tmp_path):
    process = process_of(norm)
    one, other = (draw_augmentation(unit_of().index, 0, "visit", visit) for visit in range(2))
    first = unit_of(process, steps=2, augmentation=one)
    second = next_unit(first, restarted=0, augmentation=other)
    before, after = make(first, tmp_path), None
    after = make(second, tmp_path, before)
    perturbed = (before.segments.states(levels_of(first))[-1] - levels_of(first)).numpy()
    start = (after.segments.states(levels_of(second))[0] - levels_of(second)).numpy()
    noise = draw_start(process, 77, second.index, (1, 8, 8)).numpy()
    clean, carried = levels_of(second).numpy(), 0
    for image, ((down, right, flip), (down2, right2, flip2)) in enumerate(zip(one, other, strict=True)):
        padded = np.full((16, 16), 10_000)  # where the first augmentation put each pixel of the padded image
        padded[down : down + 8, right : right + 8] = perturbed[image, 0][:, :: -1 if flip else 1]
        wanted = padded[down2 : down2 + 8, right2 : right2 + 8][:, :: -1 if flip2 else 1]
        opened = wanted == 10_000
        wanted = np.where(opened, noise[image, 0], wanted)
        if norm == "L2":
            wanted = np.trunc(wanted * min(1.0, process.bound / np.sqrt((wanted.astype(float) ** 2).sum())))
        wanted = np.clip(clean[image, 0] + wanted, 0, process.denominator) - clean[image, 0]
        assert np.array_equal(start[image, 0], wanted)
        carried += int((~opened).sum())
    assert carried > 300
    if norm == "L2":
        assert (np.sqrt((start.astype(float) ** 2).sum((1, 2, 3))) <= process.bound).all()


def test_the_name_of_a_shard_depends_on_all_that_makes_its_states():
    unit = unit_of()
    shifted = unit.index.copy()
    shifted[0] = SPLIT.rows[20]
    others = [
        replace(unit, weights="other"),
        replace(unit, model="other"),
        replace(unit, data="other"),
        replace(unit, steps=5),
        replace(unit, start_seed=1),
        replace(unit, index=shifted),
        replace(unit, index=unit.index[::-1].copy()),
        replace(unit, taken=unit.taken + 1),
        replace(unit, augmentation=AUGMENTED),
        replace(unit, augmentation=np.zeros_like(AUGMENTED)),
        replace(unit, parent="a"),
    ]
    changes = [
        {"step": 100},
        {"bound": 900},
        {"noise": 900},
        {"start": "gaussian"},
        {"loss": "dlr"},
        {"conditioning": "random"},
        {"project": False},
        {"denominator": 10200},
        {"steps": 7},
        {"batch": 6},
        {"threads": 2},
        {"precision": "bfloat16"},
    ]
    others += [replace(unit, process=replace(unit.process, **change)) for change in changes]
    names = [one.fingerprint for one in (unit, *others)]
    assert len(set(names)) == len(names)


def test_the_name_of_a_shard_depends_on_nothing_else():
    unit = unit_of()
    assert unit_of(round=3, number=2, version=1, cohort=4, visit=2).fingerprint == unit.fingerprint
    assert unit_of().fingerprint == unit.fingerprint


def test_every_writer_makes_the_same_arrays(tmp_path):
    unit = unit_of()
    for name in ("first", "second"):
        make(unit, tmp_path / name)
    one, other = (
        unpack((tmp_path / name / shard_key(unit.fingerprint)).read_bytes())[0] for name in ("first", "second")
    )
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("norm", THREATS)
def test_a_shard_that_does_not_decode_to_what_was_attacked_is_never_committed(norm, tmp_path, monkeypatch):
    name = {"Linf": "pack_signs", "L2": "pack_delta"}[norm]
    packed = getattr(shards, name)

    def lossy(values: torch.Tensor) -> object:
        values = values.clone()
        values[1, 7] = 0
        return packed(values)

    monkeypatch.setattr(shards, name, lossy)
    unit = unit_of(process_of(norm, start="none"))
    with pytest.raises(LossyShardError, match=f"shard {unit.fingerprint} does not decode"):
        make(unit, tmp_path)
    assert list(Storage.at(tmp_path).entries()) == []
    monkeypatch.undo()
    make(unit, tmp_path)


def test_an_image_that_is_not_in_the_split_is_refused(tmp_path):
    index = unit_of().index.copy()
    index[3] = 10**6
    with pytest.raises(ValueError, match="row 1000000 is not among the 40 rows"):
        make(unit_of(index=index), tmp_path)


def test_bfloat16_shards_hold_what_bfloat16_networks_were_shown(tmp_path):
    row = make(unit_of(process_of(precision="bfloat16")), tmp_path).row
    assert row.last_states != make(unit_of(), tmp_path).row.last_states


def test_the_turn_is_held_for_the_attack_and_given_back_before_the_shard_is_written(tmp_path, monkeypatch):
    turn, held = threading.Lock(), []
    model = small_model()

    def attacked():
        held.append(("attack", turn.locked()))
        return model

    put = Storage.put

    def watched(storage: Storage, key: str, content: bytes) -> None:
        held.append(("put", turn.locked()))
        put(storage, key, content)

    monkeypatch.setattr(Storage, "put", watched)
    generate_unit(unit_of(), attacked, SPLIT, Storage.at(tmp_path), parent=None, turn=turn)
    assert held == [("attack", True), ("put", False)]


def test_a_batch_for_which_the_device_has_no_room_names_its_setting_and_commits_nothing(tmp_path, monkeypatch):
    model = small_model()
    forward = model.classifier.forward

    def crowded(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(images)

    monkeypatch.setattr(model.classifier, "forward", crowded)
    with pytest.raises(DeviceMemoryError, match=r"no room for attack\.batch = 5 \(CUDA out of memory.*: lower it"):
        generate_unit(unit_of(), lambda: model, SPLIT, Storage.at(tmp_path), parent=None)
    assert not Storage.at(tmp_path).names("trajectories")
    generate_unit(unit_of(process_of(batch=3)), lambda: model, SPLIT, Storage.at(tmp_path), parent=None)
