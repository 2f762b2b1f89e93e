"""A unit becomes one committed shard: what names it, what it decodes to, and when nothing is attacked."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from generated_units import SPLIT, THREATS, files_below, make, process_of, small_model, unit_of, warm_unit

from stages.data.augmentation import augment
from stages.numerics import Arithmetic
from stages.rap.attack import attack, draw_start
from stages.trajectories import generate, shards
from stages.trajectories.cache import TrajectoryCache, last_states_checksum
from stages.trajectories.generate import LossyShardError, Unit, generate_unit
from stages.trajectories.shards import ShardError


def clean_of(unit: Unit) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of a unit, looked up row by row."""
    places = [SPLIT.rows.tolist().index(row) for row in unit.index]
    images = torch.from_numpy(SPLIT.images[places])
    if unit.augmentation is not None:
        images = augment(images, torch.from_numpy(unit.augmentation))
    return images, torch.from_numpy(SPLIT.labels[places])


@pytest.mark.parametrize("callers", [2, 3])
def test_a_unit_does_not_depend_on_the_callers_threads(callers, tmp_path):
    unit = unit_of()
    wanted = make(unit, tmp_path / "one")
    with Arithmetic(threads=callers).applied():
        row = make(unit, tmp_path / "more")
        assert torch.get_num_threads() == callers
    assert (row.loss, row.sha256) == (wanted.loss, wanted.sha256)


AUGMENTED = np.stack([np.arange(12) % 9, np.arange(12) % 5, np.arange(12) % 2], 1).astype(np.int16)


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("start", ["uniform", "gaussian", "none"])
@pytest.mark.parametrize("augmentation", [None, AUGMENTED], ids=["plain", "augmented"])
def test_a_shard_holds_the_states_of_the_attack(norm, start, augmentation, tmp_path):
    unit = unit_of(process_of(norm, start=start), augmentation=augmentation)
    row = make(unit, tmp_path)
    images, labels = clean_of(unit)
    noise = draw_start(unit.process, unit.start_seed, unit.index, (1, 8, 8))
    model = small_model()
    parts = [slice(0, 5), slice(5, 10), slice(10, 12)]
    wanted = [attack(model, images[part], labels[part], unit.process, noise[part]) for part in parts]
    states = torch.cat([trajectory.levels for trajectory in wanted], 1)
    segments = TrajectoryCache(tmp_path).read(unit.fingerprint)
    assert torch.equal(segments.states(unit.process.lattice.from_bytes(images)), states)
    assert row.last_states == last_states_checksum(states[-1])
    assert row.loss == pytest.approx(torch.cat([one.losses for one in wanted], 1).double().mean(1).tolist())
    assert row.success == pytest.approx(torch.cat([one.success for one in wanted], 1).double().mean(1).tolist())
    assert (row.n, row.k, row.first_index, row.last_index) == (12, 6, SPLIT.rows[0], SPLIT.rows[11])
    assert json.loads(row.attack)["norm"] == norm


@pytest.mark.parametrize("norm", THREATS)
def test_a_uniform_linf_start_is_left_out_and_any_other_is_stored(norm, tmp_path):
    unit = unit_of(process_of(norm))
    make(unit, tmp_path)
    segments = TrajectoryCache(tmp_path).read(unit.fingerprint)
    assert segments.start is None
    assert segments.start_seed == (2**64 - 5 if norm == "Linf" else None)


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("conditioning", ["deployed", "state"])
def test_a_warm_unit_goes_on_where_its_parents_ended(norm, conditioning, tmp_path):
    process = process_of(norm, conditioning=conditioning)
    first = unit_of(process, steps=2)
    second = warm_unit(first, steps=3)
    make(first, tmp_path)
    row = make(second, tmp_path)
    assert row.parents == (first.fingerprint,)
    cache = TrajectoryCache(tmp_path)
    before, after = (
        cache.read(unit.fingerprint).states(process.lattice.from_bytes(clean_of(unit)[0])) for unit in (first, second)
    )
    assert torch.equal(after[0, 3:], before[-1, second.parent_position[3:]])
    # restarted ones start from noise, and whoever goes on has the states of one attack of five steps
    whole_unit = unit_of(process, steps=5)
    make(whole_unit, tmp_path / "whole")
    whole = TrajectoryCache(tmp_path / "whole").read(whole_unit.fingerprint)
    states = whole.states(process.lattice.from_bytes(clean_of(whole_unit)[0]))
    order = [whole_unit.index.tolist().index(row) for row in second.index]
    agree = (after[:, 3:] == states[2:, order][:, 3:]).float().mean()
    assert agree > 0.99  # other batches, so other sums; see test_attack
    assert torch.equal(after[0, :3], states[0, order][:3])


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
        replace(unit, made=unit.made + 1),
        replace(unit, augmentation=AUGMENTED),
        replace(unit, augmentation=np.zeros_like(AUGMENTED)),
        replace(unit, parents=("a",)),
        replace(unit, parents=("a",), parent=unit.parent + 1),
        replace(unit, parents=("a",), parent=unit.parent + 1, parent_position=unit.parent_position + 1),
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
    assert unit_of(round=3, number=2, version=1).fingerprint == unit.fingerprint
    assert unit_of().fingerprint == unit.fingerprint


def test_every_writer_makes_the_same_bytes(tmp_path):
    unit = unit_of()
    for name in ("first", "second"):
        make(unit, tmp_path / name)
    assert files_below(tmp_path / "first" / "store") == files_below(tmp_path / "second" / "store")


class Untouchable(torch.nn.Module):
    def forward(self, *arguments: object) -> torch.Tensor:
        raise AssertionError("the model was attacked")


def untouchable() -> generate.RobustClassifier:
    return generate.RobustClassifier(Untouchable(), Untouchable(), steps=6, threat=THREATS["Linf"])


def test_a_committed_unit_is_not_attacked_again(tmp_path):
    unit = unit_of()
    row = make(unit, tmp_path)
    assert make(unit, tmp_path, untouchable()) == row


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize(
    ("conditioning", "length"), [("state", 3), ("deployed", 6)], ids=["shorter T", "shorter segment"]
)
def test_a_longer_shard_serves_a_shorter_request_without_an_attack(norm, conditioning, length, tmp_path):
    options = {"conditioning": conditioning, "step_size": 0.05}
    long = unit_of(process_of(norm, **options))
    short = unit_of(process_of(norm, steps=length, **options), steps=3)
    make(long, tmp_path)
    served = make(short, tmp_path, untouchable())
    attacked = make(short, tmp_path / "anew")
    assert files_below(tmp_path / "store/trajectories" / short.fingerprint) == files_below(
        tmp_path / "anew/store/trajectories" / short.fingerprint
    )
    assert served.last_states == attacked.last_states
    assert (served.loss, served.success, served.k) == (attacked.loss, attacked.success, 3)


def test_nothing_is_served_where_step_start_or_conditioning_differ(tmp_path):
    options = {"conditioning": "state", "step_size": 0.05}
    make(unit_of(process_of(**options)), tmp_path)
    for changed in (
        unit_of(process_of(**{**options, "conditioning": "deployed"}), steps=3),
        unit_of(process_of(**{**options, "step_size": 0.06}), steps=3),
        unit_of(process_of(**{**options, "start": "none"}), steps=3),
        unit_of(process_of(**options, loss="dlr"), steps=3),
        unit_of(process_of(**options), steps=3, weights="other"),
        unit_of(process_of(**options), steps=7),
    ):
        with pytest.raises(AssertionError, match="the model was attacked"):
            make(changed, tmp_path, untouchable())


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
    assert TrajectoryCache(tmp_path).ledger.rows() == []
    assert files_below(tmp_path / "store") == {}
    monkeypatch.undo()
    make(unit, tmp_path)


def test_a_warm_unit_whose_parent_is_not_committed_is_refused(tmp_path):
    with pytest.raises(LookupError, match="only committed shards are read"):
        make(warm_unit(unit_of(steps=2)), tmp_path)


def test_a_warm_unit_whose_parent_is_damaged_names_it(tmp_path):
    first = unit_of(steps=2)
    make(first, tmp_path)
    file = next((tmp_path / "store/trajectories" / first.fingerprint).rglob("signs/c*"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ShardError, match=first.fingerprint):
        make(warm_unit(first), tmp_path)


def test_an_image_that_is_not_in_the_split_is_refused(tmp_path):
    index = unit_of().index.copy()
    index[3] = 10**6
    with pytest.raises(ValueError, match="row 1000000 is not among the 40 rows"):
        make(unit_of(index=index), tmp_path)


def test_bfloat16_shards_hold_what_bfloat16_networks_were_shown(tmp_path):
    unit = unit_of(process_of(precision="bfloat16"))
    row = generate_unit(unit, small_model(), SPLIT, TrajectoryCache(tmp_path))
    assert row.last_states != make(unit_of(), tmp_path / "other").last_states
