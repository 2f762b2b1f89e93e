"""Importing what a user names by its path."""

import doctest
import math
from pathlib import Path

import pytest

from stages import named
from stages.evaluation.measurement import function_attacks
from stages.named import imported


def test_what_is_there_is_imported():
    assert imported("math:tau", "a number", "one") == math.tau
    assert doctest.testmod(named).failed == 0


@pytest.mark.parametrize(
    ("module", "text", "found"),
    [
        ("dividing", "1 / 0", "ZeroDivisionError: division by zero"),
        ("unfinished", "def (", "SyntaxError: "),
        ("leaving", "raise SystemExit(0)", "SystemExit: 0"),
        ("lacking", "other = 1", "AttributeError: .* has no attribute 'name'"),
    ],
)
def test_whatever_a_module_does_ends_in_one_message(
    module: str, text: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{module}.py").write_text(text)
    with pytest.raises(
        ValueError, match=rf"^attack '{module}:name' cannot be imported \({found}.*: name an importable"
    ):
        function_attacks([f"{module}:name"])
