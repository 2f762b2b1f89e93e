"""A file name means one thing in the whole tree."""

from collections import Counter
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_no_two_files_have_one_name():
    folders = ("pipeline", "stages", "cluster", "tests")
    names = [path.name for folder in folders for path in (PROJECT / folder).rglob("*.py")]
    allowed = {"__init__.py", "conftest.py"}
    assert not {name for name, count in Counter(names).items() if count > 1} - allowed
