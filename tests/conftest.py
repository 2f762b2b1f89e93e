"""What several folders of tests share."""

import os
import sys
from collections.abc import Iterator

import pytest
import torch

from cluster.session import Cluster, session


def pytest_configure(config: pytest.Config) -> None:
    # What a test computes itself agrees to the bit with what recipes compute, which use one thread.
    torch.set_num_threads(1)
    # Ray copies its own data context, which warns of a field of its own.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:ray.data.context")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Cluster]:
    """One local Ray of 2 CPUs for all tests; a session that a test opens joins it."""
    with pytest.MonkeyPatch.context() as environment:
        # Workers find the test modules, which pytest imports by adding their folders to sys.path.
        environment.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        with session(cpus=2) as cluster:
            yield cluster
