"""Fixtures of the loops that the tests compare, and of the model that they evaluate."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import evaluated_models
import pytest
from commands import TINY, flags_of, run_here
from loops import setups
from stored_runs import finish, write_receipt
from torch import nn

from pipeline.artifacts import Store
from stages.data.datasets import DataConfig, load_data
from stages.data.splits import Split
from stages.training.rounds import run_serially
from stages.training.setup import Setup
from stages.trajectories.shards import shard_key


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


@pytest.fixture
def setup(undisturbed: dict[int, Setup], make_setup: Callable[..., Setup], tmp_path: Path) -> Setup:
    """A finished run with its receipts, in a root of its own."""
    root, wanted = tmp_path / "root", undisturbed[1]
    setup = make_setup(root)
    keys = {shard_key(shard) for line in wanted.journal.lines() for shard in line["shards"]}
    keys |= {each.key for place in ("runs/run", "ledger/run") for each in wanted.root.entries(place)}
    for key in keys:  # and nothing of other runs below that root
        setup.root.put(key, wanted.root.get(key))
    for name in ("mine", "spare"):
        Store(root).make("pgd", name, lambda directory: write_receipt(directory), config=None, inputs={})
    finish(setup, ["pgd/mine"])
    return setup
