import doctest

import pytest

from stages import randomness
from stages.rap import losses, objective, process, reverse, threat
from stages.training import schedule


@pytest.mark.parametrize("module", [process, losses, objective, reverse, threat, schedule, randomness])
def test_the_examples_in_the_docstrings_give_what_they_say(module):
    names = {**vars(module), "torch": losses.torch}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted >= 1
    assert result.failed == 0
