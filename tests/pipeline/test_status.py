"""What goes on below a root is read from its files, whoever is at work or was killed."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.status import main
from stages.storage import Storage
from stages.training.rounds import run_serially
from stages.training.setup import Setup


def said(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(root)]) == 0
    return capsys.readouterr().out


def test_a_run_that_stands_in_the_middle_says_how_far_and_how_fast_it_is(
    make_setup: Callable[..., Setup], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup, done = make_setup(tmp_path), []
    setup.run.put("recipe.json", json.dumps({"recipe": {"schedule": {"rounds": 6}}}).encode())
    assert "runs/run: begun; no round is trained yet" in said(tmp_path, capsys)
    run_serially(setup, stopped=lambda: len(done) == 4, report=done.append)
    text = said(tmp_path, capsys)
    assert re.search(r"runs/run: training, round 4 of 6, written \d+ s ago", text)
    assert re.search(r"judge [\d.]+% of 16 after round 3", text)
    assert re.search(r"loss [\d.]+, [\d,]+ attack steps/s a generator, lag 3 updates", text)
    assert f"8 shards, {sum(line['bytes'] for line in done) / 1e6:,.1f} MB" in text
    assert re.search(r"\d+ s of training left, as the last 4 rounds took [\d.e-]+ s each", text)
    setup.run.put("results.json", json.dumps({"robust_accuracy": {"value": 0.5, "images": 360}}).encode())
    assert said(tmp_path, capsys) == "runs/run: finished, 50.0 % of 360 test images remain robust\n"


def test_metrics_that_cannot_be_read_are_named(
    make_setup: Callable[..., Setup], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = make_setup(tmp_path)
    setup.run.put("metrics/0000000.jsonl", b'{"round": 0, "lo')
    assert main([str(tmp_path)]) == 1
    assert "runs/run/metrics/0000000.jsonl is damaged: remove" in capsys.readouterr().err


def test_a_search_says_the_last_line_of_each_trial(
    make_setup: Callable[..., Setup], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup, done = replace(make_setup(tmp_path), name="trials/a"), []
    run_serially(setup, stopped=lambda: len(done) == 3, report=done.append)
    trials = [{"trial": 0, "name": "000-own", "folder": "trials/a"}, {"trial": 1, "name": "001", "folder": "trials/b"}]
    noted = {"finished": False, "rung": 3, "asked": 4, "trials": trials}
    setup.root.put("searches/s/search.json", json.dumps(noted).encode())
    text = said(tmp_path, capsys)
    assert "searches/s: 2 of 4 trials known, at the rung of round 3" in text
    assert re.search(r"000-own: round 3, loss [\d.]+, judge [\d.]+% of 16", text)
    assert "001: no round is trained yet" in text
    setup.root.put("searches/s/search.json", json.dumps(noted | {"finished": True, "chosen": 1}).encode())
    assert "searches/s: finished, trial 1 of 2 was chosen" in said(tmp_path, capsys)


def test_nothing_is_said_to_be_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store").mkdir()
    assert "no run or search lies below" in said(tmp_path, capsys)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "nowhere")])


def test_a_bucket_is_looked_at_again_and_again_until_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, looks = Storage.at("memory://status"), []

    def note(rung: int) -> None:
        noted = {"finished": False, "rung": rung, "asked": 2, "trials": [{"trial": 0, "name": "000-own"}]}
        root.put("searches/s/search.json", json.dumps(noted).encode())

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt
        note(4)

    monkeypatch.setattr("pipeline.status.time.sleep", sleep)
    note(2)
    assert main(["memory://status", "--watch"]) == 130
    said = capsys.readouterr().out
    assert re.findall(r"searches/s: 1 of 2 trials known, at the rung of round (\d)", said) == ["2", "4"]
    assert said.count("000-own: its verdicts are there") == 2
