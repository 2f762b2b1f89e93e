"""The examples in the docstrings of what a search decides."""

import doctest

from stages.search import halving, space


def test_examples_are_true():
    for module in (halving, space):
        found = doctest.testmod(module)
        assert found.attempted > 0
        assert found.failed == 0
