"""The examples of how fields and spaces are written."""

import doctest

from pipeline import axes, fields


def test_examples_are_true() -> None:
    for module in (fields, axes):
        found = doctest.testmod(module)
        assert found.attempted > 0
        assert found.failed == 0
