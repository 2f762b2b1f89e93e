"""What several folders of tests share."""

from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.session import Cluster, session


def pytest_configure(config: pytest.Config) -> None:
    # What a test computes itself agrees to the bit with what recipes compute, which use one thread.
    torch.set_num_threads(1)
    # Ray copies its own data context, which warns of a field of its own.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:ray.data.context")


class Waiting(TorchDispatchMode):
    """The operations whose result the program waited for: a device answers them only once all before them are done."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        name, picked = operation.overloadpacket.__name__, arguments[1] if len(arguments) > 1 else None
        by_mask = name.startswith("index") and isinstance(picked, list) and picked[0].dtype == torch.bool
        if name in self.WAITING or by_mask:
            self.asked.append(name)
        return operation(*arguments, **(keywords or {}))


@pytest.fixture
def waiting() -> type[Waiting]:
    """A block that notes what of its operations would wait for a GPU."""
    return Waiting


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Cluster]:
    """One local Ray of 2 CPUs for all tests; a session that a test opens joins it."""
    with session(cpus=2) as cluster:
        yield cluster
