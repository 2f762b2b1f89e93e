"""Fixtures of the loops that the tests compare, and of the model that they evaluate."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import evaluated_models
import pytest
from commands import TINY, flags_of, run_here
from loops import setups
from torch import nn

from stages.data.datasets import DataConfig, load_data
from stages.data.splits import Split
from stages.training.rounds import run_serially
from stages.training.setup import Setup


@pytest.fixture(scope="session")
def make_setup() -> Callable[..., Setup]:
    """Makes a setup below a directory."""
    return setups()


@pytest.fixture(scope="session")
def undisturbed(make_setup: Callable[..., Setup], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Setup]:
    """For each overlap, a finished serial loop: what every other way to run it must equal."""
    finished = {}
    for overlap in (0, 1):
        setup = make_setup(tmp_path_factory.mktemp(f"serial-{overlap}"), overlap)
        run_serially(setup)
        finished[overlap] = setup
    return finished


@pytest.fixture(scope="session")
def test() -> Split:
    """The test images of the digits."""
    return load_data(DataConfig(name="digits")).test


@pytest.fixture(scope="session")
def model() -> nn.Module:
    """A linear model of them."""
    return evaluated_models.build().eval()


@pytest.fixture(scope="session")
def finished(ray_session: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run to the end, and what it printed."""
    root, printed = tmp_path_factory.mktemp("finished"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_here(root, *flags_of(TINY))
    return root, printed.getvalue()
