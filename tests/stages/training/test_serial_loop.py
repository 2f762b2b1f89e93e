"""The serial loop: interrupted anywhere and run again, it publishes what an undisturbed one does."""

import logging
import math
import shutil
from dataclasses import replace
from functools import cache as remembered
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_runs import CONFIGS, after, published, same_shards, setup_of, shards_of, without_times

from stages.training import generator, rounds
from stages.training.rounds import run_serially
from stages.training.setup import Setup
from stages.training.versions import Version, VersionMismatchError
from stages.trajectories.ledger import Ledger
from stages.trajectories.shards import MissingShardError, read_shard, shard_key


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
    shutil.copytree(setup.root.root, root, dirs_exist_ok=True)
    return setup_of(root, setup.config)


def forget_run(setup: Setup) -> None:
    """Leave nothing of a run but its shards."""
    setup.run.delete([each.key for each in setup.run.entries()])


@pytest.mark.parametrize(
    ("name", "rounds_done"), [*((name, [0, 1, 2]) for name in CONFIGS), ("adapter, overlap 1", [3, 1, 2, 1])]
)
def test_a_run_that_is_stopped_and_resumed_publishes_the_same_bytes(name, rounds_done, undisturbed, tmp_path):
    wanted = undisturbed(name)
    for count in rounds_done:
        torch.manual_seed(count)
        run_serially(setup_of(tmp_path, CONFIGS[name]), stopped=after(count))
    setup = setup_of(tmp_path, CONFIGS[name])
    assert not setup.is_complete
    run_serially(setup)
    assert setup.is_complete
    assert published(setup) == published(wanted)
    assert len(published(setup)) == setup.config.schedule.rounds + 1
    assert same_shards(setup, wanted)
    lines, reference = setup.journal.lines(), wanted.journal.lines()
    assert [without_times(line) for line in lines] == [without_times(line) for line in reference]
    best, version = setup.journal.best_weights()
    other, other_version = wanted.journal.best_weights()
    assert version == other_version
    assert all(torch.equal(best[key], other[key]) for key in other)


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_a_root_elsewhere_holds_the_same(place, request, undisturbed, tmp_path):
    bucket = request.getfixturevalue("s3_bucket") if place == "s3" else "memory://serial"
    root, config = f"{bucket}/{tmp_path.name}", CONFIGS["adapter, overlap 1"]
    for count in (3, 2, 9):
        run_serially(setup_of(root, config), stopped=after(count))
    setup, wanted = setup_of(root, config), undisturbed("adapter, overlap 1")
    assert setup.is_complete
    assert published(setup) == published(wanted)
    assert same_shards(setup, wanted)
    assert {row.fingerprint for row in Ledger(setup.root, "run").rows()} == shards_of(wanted).keys()


@pytest.mark.parametrize("name", ["adapter, overlap 1", "adapter, overlap 0"])
def test_without_old_weights_a_stopped_run_ends_with_the_same_ones(name, undisturbed, tmp_path):
    wanted = undisturbed(name)
    for count in (1, 2, 1, 3, 200):
        run_serially(setup_of(tmp_path, CONFIGS[name], keep_versions=False), stopped=after(count))
    setup = setup_of(tmp_path, CONFIGS[name], keep_versions=False)
    assert setup.is_complete
    assert published(setup) == {}
    ours, theirs = setup.journal.lines(), wanted.journal.lines()
    assert [line["weights"] for line in ours] == [line["weights"] for line in theirs]


def test_versions_differ_from_round_to_round(undisturbed):
    assert len(set(published(undisturbed("adapter, overlap 1")).values())) == 7


def test_a_finished_run_trains_and_generates_nothing(undisturbed, tmp_path, monkeypatch):
    setup = copy_of(undisturbed("adapter, overlap 1"), tmp_path)
    before = published(setup), setup.journal.lines()
    monkeypatch.setattr(rounds.Learner, "update", None)
    monkeypatch.setattr(generator, "generate_unit", None)
    assert run_serially(setup) == 0
    assert (published(setup), setup.journal.lines()) == before


def test_a_second_run_over_the_same_shards_generates_none(undisturbed, tmp_path, monkeypatch):
    first = undisturbed("adapter, overlap 1")
    shutil.copytree(first.root.local("trajectories"), tmp_path / "trajectories")
    monkeypatch.setattr(generator, "generate_unit", None)
    second = setup_of(tmp_path, first.config, name="second")
    assert run_serially(second) == 0
    assert published(second) == published(first)
    assert Ledger(second.root, "second").rows() == Ledger(first.root, "run").rows()


def test_a_changed_training_setting_keeps_the_shards_that_it_does_not_affect(undisturbed, tmp_path):
    """With overlap, the first two rounds attack v_0, which a learning rate does not change."""
    first = undisturbed("adapter, overlap 1")
    shutil.copytree(first.root.local("trajectories"), tmp_path / "trajectories")
    slower = replace(
        first.config,
        train=replace(first.config.train, learning_rate=1e-3),
        schedule=replace(first.config.schedule, rounds=3),
    )
    assert run_serially(setup_of(tmp_path, slower)) == slower.schedule.round_cohorts  # all of the third round


def test_every_shard_is_in_the_ledger_once(undisturbed):
    setup = undisturbed("adapter, overlap 1")
    rows = Ledger(setup.root, "run").rows()
    assert [row.fingerprint for row in rows] == [name for line in setup.journal.lines() for name in line["shards"]]
    assert rows == [read_shard(setup.root, row.fingerprint).row for row in rows]
    assert [row.round for row in rows] == [number for number in range(6) for _ in range(2)]


def damage(setup: Setup, name: str, kind: str) -> None:
    content = setup.root.get(shard_key(name))
    if kind == "deleted":
        setup.root.delete([shard_key(name)])
    else:
        changed = content[:50] + bytes([content[50] ^ 1]) + content[51:] if kind == "flipped bit" else content[:50]
        setup.root.put(shard_key(name), changed)


@pytest.mark.parametrize("kind", ["flipped bit", "truncated", "deleted"])
def test_a_damaged_shard_of_a_round_is_made_again_and_said(kind, undisturbed, tmp_path, caplog):
    wanted = undisturbed("adapter, overlap 1")
    setup = copy_of(wanted, tmp_path)
    forget_run(setup)
    name = wanted.journal.lines()[3]["shards"][0]
    damage(setup, name, kind)
    with caplog.at_level(logging.WARNING):
        assert run_serially(setup) == 1
    assert published(setup) == published(wanted)
    assert same_shards(setup, wanted)
    assert kind == "deleted" or name in caplog.text


def parent_of_last_round(setup: Setup) -> str:
    rows = {row.fingerprint: row for row in Ledger(setup.root, "run").rows()}
    return next(row.parent for row in rows.values() if row.round == 5 and row.parent)


@pytest.mark.parametrize("kind", ["flipped bit", "truncated", "deleted"])
def test_a_damaged_parent_is_made_again_from_kept_weights(kind, undisturbed, tmp_path, caplog):
    wanted = undisturbed("adapter, overlap 1")
    setup, parent = setup_of(tmp_path, wanted.config), parent_of_last_round(wanted)
    run_serially(setup, stopped=after(5))
    damage(setup, parent, kind)
    with caplog.at_level(logging.WARNING):
        run_serially(setup)
    assert parent in caplog.text
    assert published(setup) == published(wanted)
    assert same_shards(setup, wanted)


def test_a_lost_parent_whose_weights_were_not_kept_is_named(undisturbed, tmp_path):
    wanted = undisturbed("adapter, overlap 1")
    setup, parent = setup_of(tmp_path, wanted.config, keep_versions=False), parent_of_last_round(wanted)
    run_serially(setup, stopped=after(5))
    damage(setup, parent, "deleted")
    with pytest.raises(MissingShardError, match=f"{parent}.* or remove .*train, and the same command"):
        run_serially(setup)


def test_a_repeated_round_that_gives_other_weights_stops_the_run(undisturbed, tmp_path):
    setup = copy_of(undisturbed("adapter, overlap 1"), tmp_path)
    run_lines = setup.run.get("metrics/0000000.jsonl")
    forget_run(setup)
    first = undisturbed("adapter, overlap 1").journal.lines()[0]["weights"]
    setup.run.put("metrics/0000000.jsonl", run_lines.replace(first.encode(), b"0" * 32))
    with pytest.raises(VersionMismatchError, match="round 0 was repeated"):
        run_serially(setup_of(tmp_path, setup.config))


def test_what_a_device_does_not_repeat_is_set_aside_and_the_run_goes_on(tmp_path, monkeypatch):
    config = CONFIGS["adapter, overlap 1"]
    setup = setup_of(tmp_path, config, repeats=False)
    run_serially(setup, stopped=after(5))
    assert setup.journal.checkpointed == 4
    before = {line["round"]: line["weights"] for line in setup.journal.lines()}
    update = rounds.Learner.update

    def noisy(learner, batch):
        found = update(learner, batch)
        with torch.no_grad():
            learner.parameters[0] += 1e-6
        return found

    monkeypatch.setattr(rounds.Learner, "update", noisy)
    with pytest.raises(VersionMismatchError, match="round 4 was repeated"):
        run_serially(setup_of(tmp_path, config))
    run_serially(setup)
    assert setup.is_complete
    lines = setup.journal.lines()
    assert [line["round"] for line in lines] == list(range(6))
    assert [line.get("set_aside") for line in lines] == [None] * 4 + [1, None]
    assert lines[3]["weights"] == before[3]
    assert lines[4]["weights"] != before[4]
    assert lines[5]["attacked"] == lines[3]["weights"]
    for row in Ledger(setup.root, "run").rows():
        read_shard(setup.root, row.fingerprint)


def test_the_lines_of_metrics_hold_what_was_measured(undisturbed):
    setup = undisturbed("adapter, overlap 1")
    lines = setup.journal.lines()
    schedule = setup.schedule
    assert [line["round"] for line in lines] == list(range(6))
    assert [line["version"] for line in lines] == [0, 0, 1, 2, 3, 4]
    assert [line["updates"] for line in lines] == [(number + 1) * schedule.updates_per_round for number in range(6)]
    assert [("judge" in line) for line in lines] == [False, True, False, True, False, True]
    assert [line["checkpoint"] for line in lines] == [False, True, False, True, False, True]
    for before, line in pairwise(lines):
        assert line["attacked"] == (
            before["attacked"] if line["version"] == 0 else lines[line["version"] - 1]["weights"]
        )
    for line in lines:
        assert line["lag"] == schedule.lag(line["round"]) <= schedule.lag_bound
        assert math.isfinite(line["loss"])
        assert line["loss"] == pytest.approx(line["cross_entropy"] + line["reconstruction"], rel=1e-5)
        assert 0 <= line["waiting"] <= 1
        assert len(line["shards"]) == 2
        assert line["bytes"] > 0
    assert lines[3]["judge"]["robust"]["images"] == 16


def test_given_first_weights_are_version_0(undisturbed, tmp_path):
    version = undisturbed("adapter, overlap 1").versions.find(6)
    setup = setup_of(tmp_path, initial=version.weights)
    run_serially(setup, stopped=after(0))
    first = setup.versions.find(0)
    assert isinstance(first, Version)
    assert all(torch.equal(first.weights[name], value) for name, value in version.weights.items())
