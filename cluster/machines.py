"""What a cluster is made of, and how many workers of a size its machines hold."""

from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import state  # of a cluster's configuration Ray tells nobody else

UNLIMITED = -1  # machines of a kind, in Ray's record of a cluster that scales itself


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The CPUs and GPUs of one node: a worker lies on one node as a whole."""

    cpus: float
    gpus: float = 0

    def holds(self, *, cpus: float, gpus: float) -> int:
        """How many workers of a size it has room for. Shares of GPUs do not reach across two of them."""
        # 1e-6: a third of 1 CPU, as Ray counts it, fits three times
        room = [int(self.cpus / cpus + 1e-6)] if cpus else []
        if gpus:
            room.append(int(self.gpus // gpus) if gpus >= 1 else int(self.gpus) * int(1 / gpus + 1e-6))
        return min(room, default=0)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the session runs on."""

    machines: tuple[Machine, ...] = field(default=())
    """Those that are there, and those that a cluster that scales itself adds when they are asked for."""
    is_local: bool
    """Started by this process, so it has this machine only and ends with it."""
    is_unlimited: bool = False
    """Its autoscaler may add machines without a limit, so that no number of workers is too large for it."""

    @property
    def cpus(self) -> float:
        """CPUs of all nodes together."""
        return sum(machine.cpus for machine in self.machines)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes together."""
        return sum(machine.gpus for machine in self.machines)

    @property
    def text(self) -> str:
        """Its nodes in words."""
        kinds = {each: self.machines.count(each) for each in self.machines}
        return " and ".join(f"{count} x ({each.cpus:g} CPUs, {each.gpus:g} GPUs)" for each, count in kinds.items())

    def room(self, *, cpus: float, gpus: float) -> int:
        """How many workers of a size run at once."""
        return sum(machine.holds(cpus=cpus, gpus=gpus) for machine in self.machines)


def read_cluster(*, is_local: bool) -> Cluster:
    """The cluster of the Ray that is connected: its nodes, and those that its autoscaler may add."""
    alive = [_machine(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    config = state.get_cluster_config()
    kinds = list(config.node_group_configs) if config else []
    return Cluster(
        machines=(*alive, *_addable(kinds, alive)),
        is_local=is_local,
        is_unlimited=any(kind.max_count == UNLIMITED for kind in kinds),
    )


def _addable(kinds: list[Any], alive: list[Machine]) -> list[Machine]:
    """Machines of the kinds that the cluster's configuration names, up to their numbers, but for those there are."""
    found = []
    for kind in kinds:
        machine = _machine(kind.resources)
        found += [machine] * max(0, kind.max_count - alive.count(machine))
    return found


def _machine(resources: Any) -> Machine:  # noqa: ANN401 - a dictionary, or a message's
    return Machine(cpus=resources.get("CPU", 0), gpus=resources.get("GPU", 0))
