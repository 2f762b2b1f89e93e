"""The serial loop: interrupted anywhere and run again, it publishes what an undisturbed one does."""

import math
import pickle
import shutil
from dataclasses import replace
from functools import cache as remembered
from pathlib import Path

import pytest
import torch
from tiny_runs import SCHEDULE, THREATS, TRAIN, after, loop_config, published, setup_of, without_times

from stages.rap.attack import AttackConfig
from stages.training import rounds
from stages.training.rounds import Setup, load_trained, run_serially
from stages.training.versions import VersionMismatchError
from stages.trajectories.cache import TrajectoryCache
from stages.trajectories.shards import ShardError

CONFIGS = {
    "adapter, overlap 1": loop_config(train=replace(TRAIN, ema=0.9)),
    "adapter, overlap 0": loop_config(schedule=replace(SCHEDULE, overlap_rounds=0)),
    "L2, augmented": loop_config("L2", augment=True),
    "classifier alone": loop_config(train=replace(TRAIN, what="classifier")),
    "both, no warm start": loop_config(
        train=replace(TRAIN, what="both"), schedule=replace(SCHEDULE, rounds=3, warm_start=False)
    ),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run of each config, made when it is first asked for."""

    @remembered
    def make(name: str) -> Setup:
        setup = setup_of(tmp_path_factory.mktemp("undisturbed"), CONFIGS[name])
        run_serially(setup)
        return setup

    return make


def copy_of(setup: Setup, root: Path) -> Setup:
    shutil.copytree(setup.root, root, dirs_exist_ok=True)
    return setup_of(root, setup.config)


@pytest.mark.parametrize(
    ("name", "questions"), [*((name, [0, 5, 17]) for name in CONFIGS), ("adapter, overlap 1", [9, 9, 9, 9, 9])]
)
def test_a_run_that_is_stopped_and_resumed_publishes_the_same_bytes(name, questions, undisturbed, tmp_path):
    wanted = undisturbed(name)
    for count in questions:
        torch.manual_seed(count)
        run_serially(setup_of(tmp_path, CONFIGS[name]), stopped=after(count))
    setup = setup_of(tmp_path, CONFIGS[name])
    assert not setup.is_complete
    run_serially(setup)
    assert setup.is_complete
    assert published(setup) == published(wanted)
    assert len(published(setup)) == setup.config.schedule.rounds + 1
    lines, reference = setup.journal.lines(), wanted.journal.lines()
    assert [without_times(line) for line in lines] == [without_times(line) for line in reference]
    best, version = setup.journal.best_weights()
    other, other_version = wanted.journal.best_weights()
    assert version == other_version
    assert all(torch.equal(best[key], other[key]) for key in other)


@pytest.mark.parametrize("name", ["adapter, overlap 1", "adapter, overlap 0"])
def test_without_old_weights_a_stopped_run_ends_with_the_same_ones(name, undisturbed, tmp_path):
    wanted = undisturbed(name)
    for count in (9, 9, 9, 9, 200):
        run_serially(setup_of(tmp_path, CONFIGS[name], keep_versions=False), stopped=after(count))
    setup = setup_of(tmp_path, CONFIGS[name], keep_versions=False)
    assert setup.is_complete
    assert setup.versions.fingerprints(6) == wanted.versions.fingerprints(6)
    first = setup.schedule.version(3)  # the last round, 5, trains on those from 3 on
    assert published(setup) == {number: file for number, file in published(wanted).items() if int(number) >= first}
    with pytest.raises(VersionMismatchError, match="unless a run is called with --keep-versions"):
        setup.versions.load(first - 1)


def test_versions_differ_from_round_to_round(undisturbed):
    assert len(set(published(undisturbed("adapter, overlap 1")).values())) == 7


def test_a_finished_run_trains_and_generates_nothing(undisturbed, tmp_path, monkeypatch):
    setup = copy_of(undisturbed("adapter, overlap 1"), tmp_path)
    before = published(setup), setup.journal.metrics.read_text()
    monkeypatch.setattr(rounds.Learner, "update", None)
    monkeypatch.setattr(rounds, "generate_unit", None)
    run_serially(setup)
    assert (published(setup), setup.journal.metrics.read_text()) == before


def test_a_second_run_over_the_same_store_generates_no_shard(undisturbed, tmp_path, monkeypatch):
    first = undisturbed("adapter, overlap 1")
    shutil.copytree(first.root / "store", tmp_path / "store")
    shutil.copytree(first.root / "ledger", tmp_path / "ledger")
    monkeypatch.setattr(rounds, "generate_unit", None)
    second = setup_of(tmp_path, first.config, name="second")
    run_serially(second)
    assert published(second) == published(first)


def test_a_lost_shard_without_its_row_is_made_again_and_changes_nothing(undisturbed, tmp_path):
    first = undisturbed("adapter, overlap 1")
    setup = copy_of(first, tmp_path)
    cache = TrajectoryCache(tmp_path)
    lost = setup.journal.lines()[4]["shards"][1]
    cache.ledger.remove([lost])
    shutil.rmtree(cache.path(lost))
    shutil.rmtree(setup.run)
    run_serially(setup)
    assert published(setup) == published(first)


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "deleted"])
def test_a_damaged_shard_stops_the_training_that_would_read_it(damage, undisturbed, tmp_path):
    setup = copy_of(undisturbed("adapter, overlap 1"), tmp_path)
    shutil.rmtree(setup.run)
    name = undisturbed("adapter, overlap 1").journal.lines()[3]["shards"][0]
    file = TrajectoryCache(tmp_path).path(name) / "signs/c.0.0.0"
    content = file.read_bytes()
    if damage == "deleted":
        shutil.rmtree(file.parents[1])
    else:
        file.write_bytes(content[:30] + bytes([content[30] ^ 1]) + content[31:] if "bit" in damage else content[:30])
    with pytest.raises(ShardError, match=name):
        run_serially(setup)
    assert "3" in published(setup)
    assert "4" not in published(setup)


def test_a_repeated_round_that_gives_other_weights_stops_the_run(undisturbed, tmp_path):
    setup = copy_of(undisturbed("adapter, overlap 1"), tmp_path)
    setup.journal.checkpoint.unlink()
    weights = setup.versions.load(1)
    shutil.rmtree(setup.versions.directory / "1")
    setup.versions.publish(1, {name: value + 1e-7 for name, value in weights.items()})
    with pytest.raises(VersionMismatchError, match="round 0 was repeated"):
        run_serially(setup_of(tmp_path, setup.config))


def test_the_lines_of_metrics_hold_what_was_measured(undisturbed):
    setup = undisturbed("adapter, overlap 1")
    lines = setup.journal.lines()
    schedule = setup.schedule
    assert [line["round"] for line in lines] == list(range(6))
    assert [line["version"] for line in lines] == [0, 0, 1, 2, 3, 4]
    assert [line["updates"] for line in lines] == [(number + 1) * schedule.updates_per_round for number in range(6)]
    assert [("judge" in line) for line in lines] == [False, True, False, True, False, True]
    for line in lines:
        assert line["lag"] == schedule.lag(line["round"]) <= schedule.lag_bound
        assert line["age"]["0.0"] <= line["age"]["0.5"] <= line["age"]["1.0"]
        assert math.isfinite(line["loss"])
        assert line["loss"] == pytest.approx(line["cross_entropy"] + line["reconstruction"], rel=1e-5)
        assert 0 <= line["waiting"] <= 1
        assert len(line["shards"]) == 2
        assert line["bytes"] > 0
    assert lines[3]["judge"]["robust"]["images"] == 16


def test_a_stop_before_the_first_update_publishes_the_first_weights_only(tmp_path):
    setup = setup_of(tmp_path)
    run_serially(setup, stopped=after(0))
    assert set(published(setup)) == {"0"}
    assert setup.journal.lines() == []


def test_a_setup_is_sent_without_the_schedule_that_was_begun(tmp_path):
    """Arrays arrive read-only, as from Ray's object store."""
    setup = setup_of(tmp_path, CONFIGS["adapter, overlap 1"])
    first = setup.schedule.round(0)
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(setup, protocol=5, buffer_callback=buffers.append)
    arrived: Setup = pickle.loads(sent, buffers=[bytes(buffer) for buffer in buffers])
    assert (arrived.schedule.round(0).positions == first.positions).all()
    assert (arrived.schedule.round(1).made == setup.schedule.round(1).made).all()


def test_given_first_weights_are_version_0(undisturbed, tmp_path):
    weights = undisturbed("adapter, overlap 1").versions.load(6)
    setup = setup_of(tmp_path, initial=weights)
    run_serially(setup, stopped=after(0))
    assert all(torch.equal(setup.versions.load(0)[name], value) for name, value in weights.items())


def test_no_rounds_publish_the_first_weights(tmp_path):
    setup = setup_of(tmp_path, loop_config(schedule=replace(SCHEDULE, rounds=0)))
    run_serially(setup)
    assert setup.is_complete
    assert set(published(setup)) == {"0"}


def test_each_line_is_reported_once_it_is_written(tmp_path):
    seen: list[int] = []
    setup = setup_of(tmp_path, loop_config(schedule=replace(SCHEDULE, rounds=2)))
    run_serially(setup, report=lambda line: seen.append(line["round"]))
    assert seen == [0, 1]


def test_setting_up_takes_no_random_numbers_and_leaves_the_classifier_alone(tmp_path):
    state = torch.get_rng_state()
    setup = setup_of(tmp_path, CONFIGS["both, no warm start"])
    built = setup.build()
    assert torch.equal(torch.get_rng_state(), state)
    assert built.classifier is not setup.classifier
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), setup.build().parameters(), strict=True))


def test_weights_of_another_robust_classifier_are_refused(tmp_path):
    other = setup_of(tmp_path).learner().weights()
    with pytest.raises(ValueError, match=r"it has no 'adapter\.[a-z.0-9_]+' \(\d+ such names\)"):
        load_trained(setup_of(tmp_path, CONFIGS["classifier alone"]).build(), other)


def test_waiting_for_a_version_ends_when_stopped(tmp_path):
    assert rounds._known_versions(setup_of(tmp_path).versions, 3, lambda: True) == []


def test_a_full_attack_length_of_one_step_runs(tmp_path):
    attack = AttackConfig(steps=1, batch=16).process(THREATS["Linf"])
    setup = setup_of(tmp_path, loop_config(attack=attack, schedule=replace(SCHEDULE, rounds=2, segment_steps=1)))
    run_serially(setup)
    assert setup.is_complete
