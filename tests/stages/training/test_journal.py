"""What a run writes down: lines, alarms, checkpoints, and the best weights."""

import doctest
import json
import re

import pytest
import torch
from tiny_runs import setup_of

from stages.evaluation.accuracy import Accuracy
from stages.storage import Storage
from stages.training import alarms as alarms_module
from stages.training.alarms import alarms
from stages.training.journal import Journal
from stages.training.versions import Version, VersionMismatchError

HEALTHY = {"zero_gradients": 0.05}


def judged_line(number: int, correct: int) -> dict:
    robust = Accuracy(correct=correct, images=100).as_json()
    return {**HEALTHY, "round": number, "version": number, "attacked": f"v{number}", "judge": {"robust": robust}}


def test_a_healthy_round_raises_no_alarm():
    assert alarms(HEALTHY, None) == []
    assert alarms(judged_line(1, 50), 0.52) == []


@pytest.mark.parametrize(
    ("line", "best", "start"),
    [
        ({**HEALTHY, "zero_gradients": 0.31}, None, "zero gradients: 31% of the pixels have none"),
        (judged_line(9, 20), 0.5, "collapse: the judge finds 20.0%, after 50.0% before"),
    ],
)
def test_each_alarm_says_what_is_wrong_and_what_to_do(line, best, start):
    (text,) = alarms(line, best)
    assert text.startswith(start)
    assert "; l" in text  # lower, or look


def test_a_drop_within_the_interval_is_no_collapse():
    high = Accuracy(correct=45, images=100).interval[1]
    assert alarms(judged_line(2, 45), high - 0.001) == []
    assert len(alarms(judged_line(2, 45), high + 0.001)) == 1


def write(journal: Journal, line: dict) -> None:
    journal.write({**line, "weights": f"v{line['round'] + 1}"})


def checkpoint(journal: Journal, learner, number: int) -> None:
    version = Version(number, f"v{number}", {"adapter.a": torch.full((2,), float(number))})
    journal.write_checkpoint(number, learner.state(), [version], {0: f"shard {number}"}, journal.best)


def test_lines_come_back_in_order_over_many_checkpoints(tmp_path):
    setup = setup_of(tmp_path)
    journal, learner = setup.journal, setup.learner()
    assert journal.lines() == []
    for number in range(25):
        write(journal, judged_line(number, 50))
        if number % 2:
            checkpoint(journal, learner, number + 1)
    assert [line["round"] for line in setup.journal.lines()] == list(range(25))
    assert journal.run.names("metrics") == [f"{first:07}.jsonl" for first in range(0, 25, 2)]


def test_a_checkpoint_says_where_to_go_on_and_what_was_published_after_it(tmp_path):
    setup = setup_of(tmp_path)
    journal, learner = setup.journal, setup.learner()
    assert journal.checkpointed == 0
    write(journal, judged_line(0, 50))
    before = setup.journal.resume(setup.learner(), "cpu")
    assert (before.round, before.previous, before.versions) == (0, {}, ())
    assert before.published == {0: "v0", 1: "v1"}
    for value in learner.weights().values():
        value += 1.0
    checkpoint(journal, learner, 1)
    write(journal, judged_line(1, 50))
    assert journal.checkpointed == 1
    other = setup.learner()
    start = setup.journal.resume(other, "cpu")
    assert (start.round, start.previous) == (1, {0: "shard 1"})
    assert [(version.number, version.fingerprint) for version in start.versions] == [(1, "v1")]
    assert torch.equal(start.versions[0].weights["adapter.a"], torch.ones(2))
    assert start.published == {1: "v1", 2: "v2"}
    assert all(torch.equal(value, learner.weights()[name]) for name, value in other.weights().items())


def test_rounds_that_are_repeated_take_the_place_of_those_before(tmp_path):
    setup = setup_of(tmp_path)
    journal, learner = setup.journal, setup.learner()
    write(journal, judged_line(0, 50))
    checkpoint(journal, learner, 1)
    for number in range(1, 4):
        write(journal, judged_line(number, 50))
    again = setup.journal
    again.resume(learner, "cpu")
    write(again, judged_line(1, 60))
    assert [line["round"] for line in setup.journal.lines()] == [0, 1]
    assert setup.journal.lines()[1]["judge"]["robust"]["correct"] == 60


def test_a_line_that_is_gone_is_named_if_its_round_is_settled(tmp_path):
    setup = setup_of(tmp_path)
    journal, learner = setup.journal, setup.learner()
    for number in range(6):
        write(journal, judged_line(number, 50))
        if number in (1, 3):
            checkpoint(journal, learner, number + 1)
    content = setup.run.get("metrics/0000002.jsonl")
    for damaged in (content.splitlines(keepends=True)[1], b""):
        setup.run.put("metrics/0000002.jsonl", damaged)
        with pytest.raises(VersionMismatchError, match="metrics has no line of round 2, which was trained: remove"):
            setup.journal.lines()
    setup.run.delete(["metrics/0000002.jsonl"])
    with pytest.raises(VersionMismatchError, match="no line of round 2"):
        setup.journal.lines(1)
    setup.run.put("metrics/0000002.jsonl", content)
    setup.run.delete(["metrics/0000004.jsonl"])  # of rounds that are repeated
    assert [line["round"] for line in setup.journal.lines()] == [0, 1, 2, 3]


def test_torn_lines_after_the_checkpoint_are_written_anew_and_others_named(tmp_path):
    setup = setup_of(tmp_path)
    journal, learner = setup.journal, setup.learner()
    for number in range(3):
        write(journal, judged_line(number, 50))
        if number == 1:
            checkpoint(journal, learner, 2)
    setup.run.put("metrics/0000002.jsonl", setup.run.get("metrics/0000002.jsonl")[:-9])
    with pytest.raises(VersionMismatchError, match=r"metrics/0000002\.jsonl is damaged: remove"):
        setup.journal.lines()
    again = setup.journal
    assert again.resume(learner, "cpu").published == {}
    write(again, judged_line(2, 60))
    assert [line["round"] for line in setup.journal.lines()] == [0, 1, 2]


@pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b'{"round": 4}'])
def test_a_checkpoint_of_another_kind_is_damaged(content, tmp_path):
    setup = setup_of(tmp_path)
    setup.run.put("train/checkpoint.json", content)
    with pytest.raises(VersionMismatchError, match=r"checkpoint\.json is damaged"):
        _ = setup.journal.checkpointed


def test_only_the_last_state_is_kept_and_its_round_is_read_without_it(tmp_path, monkeypatch):
    setup = setup_of(tmp_path)
    journal, learner = setup.journal, setup.learner()
    for number in range(1, 4):
        checkpoint(journal, learner, number)
    assert [name for name in journal.run.names("train") if name.startswith("state")] == ["state-3.pt"]
    monkeypatch.setattr(torch, "load", None)
    assert setup.journal.checkpointed == 3


@pytest.mark.parametrize("name", ["checkpoint.json", "state-2.pt", "best/2.safetensors"])
def test_what_is_damaged_is_named_with_what_to_do(name, tmp_path):
    setup = setup_of(tmp_path)
    journal = setup.journal
    journal.enter(judged_line(1, 50))
    journal.write_best(setup.learner().shipped(), 2)
    checkpoint(journal, setup.learner(), 2)
    content = setup.run.get(f"train/{name}")
    ask = setup.journal.best_weights if "best" in name else lambda: setup.journal.resume(setup.learner(), "cpu")
    for damaged in (content[:-1], b"", content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]):
        setup.run.put(f"train/{name}", damaged)
        if name == "checkpoint.json" and damaged and len(damaged) == len(content):
            continue  # another fingerprint of a shard, which will be missing
        with pytest.raises(VersionMismatchError, match=rf"{re.escape(name)} is damaged: remove .*/runs/run/train, and"):
            ask()


def test_the_last_weights_that_the_judge_liked_best_are_kept(tmp_path):
    setup = setup_of(tmp_path)
    journal, learner, kept = setup.journal, setup.learner(), {}
    found = []
    for number, correct in enumerate([30, 60, 60, 40]):
        for value in learner.shipped().values():
            value += 1.0
        line = judged_line(number, correct)
        found.append(journal.enter(line))
        if found[-1]:
            kept = {name: value.clone() for name, value in learner.shipped().items()}
            journal.write_best(kept, number + 1)
        write(journal, line)
    assert found == [True, True, True, False]
    assert [len(line["alarms"]) for line in journal.lines()] == [0, 0, 0, 1]
    checkpoint(journal, learner, 4)
    assert journal.run.names("train/best") == ["3.safetensors"]
    weights, version = setup.journal.best_weights()
    assert version == 3
    assert all(torch.equal(weights[name], value) for name, value in kept.items())


def test_weights_that_a_later_verdict_liked_better_wait_for_their_checkpoint(tmp_path):
    setup = setup_of(tmp_path)
    journal, learner = setup.journal, setup.learner()
    journal.enter(judged_line(0, 30))
    journal.write_best(learner.shipped(), 1)
    best = journal.best
    journal.enter(judged_line(1, 60))
    journal.write_best(learner.shipped(), 2)  # what is written behind may be overtaken
    journal.write_checkpoint(1, learner.state(), [], {}, best)
    assert setup.journal.best_weights()[1] == 1
    again = setup.journal
    again.resume(learner, "cpu")
    assert again.best == best


def test_a_resumed_journal_knows_the_best_before_it(tmp_path):
    setup = setup_of(tmp_path)
    journal, learner = setup.journal, setup.learner()
    for number, correct in enumerate([60, 50]):
        line = judged_line(number, correct)
        if journal.enter(line):
            journal.write_best(learner.shipped(), number + 1)
        write(journal, line)
    checkpoint(journal, learner, 2)
    again = setup.journal
    again.resume(learner, "cpu")
    assert not again.enter(judged_line(2, 55))
    assert again.enter(judged_line(3, 61))


def test_there_are_no_best_weights_before_a_verdict(tmp_path):
    with pytest.raises(LookupError, match="nothing was judged yet"):
        Journal(Storage.at(tmp_path)).best_weights()


def test_lines_are_json_a_line(tmp_path):
    setup = setup_of(tmp_path)
    write(setup.journal, judged_line(0, 50))
    text = setup.run.get("metrics/0000000.jsonl").decode()
    assert text.endswith("\n")
    assert json.loads(text)["round"] == 0


def test_the_examples_run() -> None:
    assert doctest.testmod(alarms_module).failed == 0
