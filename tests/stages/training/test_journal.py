"""What a run writes down: torn lines, alarms, and the best weights."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import TRAIN, loop_config, setup_of

from stages.evaluation.accuracy import Accuracy
from stages.evaluation.judge import Judgement
from stages.training.journal import Journal, alarms, best_robust
from stages.training.rounds import run_serially
from stages.training.versions import VersionMismatchError

HEALTHY = {"fresh_to_stored": 1.2, "recent_fresh_to_stored": 1.2, "zero_gradients": 0.05}


def judged(correct: int, images: int = 100) -> Judgement:
    accuracy = Accuracy(correct=correct, images=images)
    return Judgement(clean=accuracy, robust=accuracy, mask=np.ones(1, np.bool_), rows=np.zeros(1, np.int64))


def judged_line(number: int, correct: int) -> dict:
    verdict = judged(correct)
    return {**HEALTHY, "round": number, "judge": {"robust": verdict.robust.as_json()}}


def test_a_healthy_round_raises_no_alarm():
    assert alarms(HEALTHY, None) == []
    assert alarms(judged_line(1, 50), 0.52) == []
    assert alarms({**HEALTHY, "recent_fresh_to_stored": None}, 0.5) == []


@pytest.mark.parametrize(
    ("line", "best", "start"),
    [
        (
            {**HEALTHY, "recent_fresh_to_stored": 3.1},
            None,
            "stale: over 10 rounds the loss on fresh adversaries is 3.1 times",
        ),
        ({**HEALTHY, "zero_gradients": 0.31}, None, "zero gradients: 31% of the pixels have none"),
        (judged_line(9, 20), 0.5, "collapse: the judge finds 20.0%, after 50.0% before"),
    ],
)
def test_each_alarm_says_what_is_wrong_and_what_to_do(line, best, start):
    (text,) = alarms(line, best)
    assert text.startswith(start)
    assert "; l" in text  # lower, or look


def test_a_drop_within_the_interval_is_no_collapse():
    low, high = Accuracy(correct=45, images=100).interval
    assert alarms(judged_line(2, 45), high - 0.001) == []
    assert len(alarms(judged_line(2, 45), high + 0.001)) == 1
    assert low < 0.45


def test_several_alarms_are_all_raised():
    line = {**judged_line(9, 0), "recent_fresh_to_stored": 9.0, "zero_gradients": 0.9}
    assert len(alarms(line, 0.9)) == 3


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path)
    journal.metrics.write_text("".join(json.dumps({"round": number}) + "\n" for number in range(4)))
    return journal


def test_a_torn_line_is_left_out_and_cut_off(journal):
    with journal.metrics.open("a") as file:
        file.write('{"round": 4, "lo')
    assert [line["round"] for line in journal.lines()] == [0, 1, 2, 3]
    journal.truncate(4)
    assert journal.metrics.read_text().endswith('{"round": 3}\n')


def test_rounds_that_will_be_repeated_are_dropped(journal):
    journal.truncate(2)
    assert [line["round"] for line in journal.lines()] == [0, 1]
    journal.truncate(0)
    assert journal.lines() == []


def test_no_lines_and_no_checkpoint_before_the_first_round(tmp_path):
    journal = Journal(tmp_path)
    assert journal.lines() == []
    assert journal.checkpointed == 0
    assert best_robust(journal.lines(), before=9) is None
    with pytest.raises(FileNotFoundError):
        journal.best_weights()


def test_the_weights_that_the_judge_liked_best_are_kept(tmp_path):
    setup = setup_of(tmp_path, loop_config(train=replace(TRAIN, ema=0.5)))
    journal, learner, kept = setup.journal, setup.learner(), {}
    for number, correct in enumerate([30, 60, 60, 40]):
        for value in learner.shipped().values():
            value += 1.0
        if number == 1:
            kept = {name: value.clone() for name, value in learner.shipped().items()}
        journal.write(judged_line(number, correct), learner, judged(correct), checkpoint=False)
    weights, version = journal.best_weights()
    assert version == 2
    assert all(torch.equal(weights[name], value) for name, value in kept.items())
    assert best_robust(journal.lines(), before=2) == 0.3
    assert best_robust(journal.lines(), before=9) == 0.6
    assert [len(line["alarms"]) for line in journal.lines()] == [0, 0, 0, 1]
    assert not (tmp_path / "runs/run/train/checkpoint.pt").exists()


def test_a_stale_alarm_needs_ten_rounds(tmp_path):
    setup = setup_of(tmp_path, loop_config(train=TRAIN))
    journal, learner = setup.journal, setup.learner()
    for number in range(12):
        line = {"round": number, "fresh_to_stored": 4.0, "zero_gradients": 0.0}
        journal.write(line, learner, None, checkpoint=False)
    assert [len(line["alarms"]) for line in journal.lines()] == [0] * 9 + [1] * 3


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.safetensors"])
def test_a_damaged_file_is_named_and_can_be_made_again(tmp_path, name):
    setup = setup_of(tmp_path, loop_config(train=TRAIN))
    run_serially(setup)
    weights, version = setup.journal.best_weights()
    whole = {key: value.clone() for key, value in weights.items()}  # they are read from the file as they are asked for
    path = tmp_path / "runs/run/train" / name
    for content in (path.read_bytes()[: path.stat().st_size // 2], b"", b"version https://git-lfs"):
        path.write_bytes(content)
        with pytest.raises(VersionMismatchError, match=f"{name} is damaged .*: remove .*train, and the same command"):
            _ = setup.journal.checkpointed, setup.journal.best_weights()
        with pytest.raises(VersionMismatchError, match=name):
            _ = setup.journal.best_weights() if "best" in name else setup.journal.resume(setup.learner(), "cpu")
    shutil.rmtree(tmp_path / "runs/run/train")
    again = setup_of(tmp_path, loop_config(train=TRAIN))
    run_serially(again)
    weights, found = again.journal.best_weights()
    assert found == version
    assert all(torch.equal(weights[key], value) for key, value in whole.items())
