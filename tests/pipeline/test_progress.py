"""What a command says while it works."""

import io
import re
import sys
import threading
from pathlib import Path

import pytest

from pipeline import progress
from pipeline.progress import LOG, Spoken, log_in, passing
from stages.storage import Storage


class Watched(io.StringIO):
    """A log that says when a text has been written."""

    def __init__(self, awaited: str) -> None:
        super().__init__()
        self.awaited, self.written = awaited, threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.awaited in self.getvalue():
            self.written.set()
        return count


def test_a_log_is_told_what_is_going_on_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    log = Watched("round 3 of 7, for")
    monkeypatch.setattr(sys, "stdout", log)
    with Spoken() as say:
        say("one line")
        say.passing("round 3 of 7", 3 / 7)
        assert log.written.wait(60)
    lines = log.getvalue().splitlines()
    assert re.fullmatch(r"\[ +\d+\.\d s\] one line", lines[0])
    assert re.fullmatch(r"\[ +\d+\.\d s\]   round 3 of 7, for \d+ s", lines[1])


def test_nothing_is_repeated_before_its_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PAUSE", float("inf"))
    with Spoken() as say:
        say.passing("round 3 of 7")
        say("one line")
    assert capsys.readouterr().out.count("\n") == 1


def test_a_terminal_gets_a_bar_below_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Watched("round 3 of 7")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Spoken() as say:
        say.passing("round 3 of 7", 3 / 7)
        say("one [line] that stays")
        assert terminal.written.wait(60)
    assert "one [line] that stays" in terminal.getvalue()
    assert "━" in terminal.getvalue()


def test_a_plain_function_gets_what_is_going_on_as_lines_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(progress, "PAUSE", float("inf"))
    tell = passing(said.append)
    for number in range(3):
        tell(f"round {number}", number / 3)
    assert said == ["round 0"]
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    tell("round 3")
    assert said == ["round 0", "round 3"]


def test_what_is_said_is_kept_in_the_log_of_a_run_call_after_call(tmp_path: Path) -> None:
    for number in (1, 2):
        with Spoken() as say:
            say(f"line {number} before there is a run")
            log_in(Storage.at(tmp_path), say)
            say(f"line {number}")
            say.keep("a table\nof two lines")
    say = Spoken()
    say.log_in(Storage.at(tmp_path))
    with pytest.raises(ValueError, match="what went wrong"), say:
        raise ValueError("what went wrong")
    begin = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, process \d+: .*\n"
    calls = [begin + rf"\[ +\d+\.\d s\] line {number}\na table\nof two lines\n" for number in (1, 2)]
    wanted = "".join(calls) + begin + "ValueError: what went wrong\n"
    assert re.fullmatch(wanted, (tmp_path / LOG).read_text())
