"""How many workers of a size a cluster's machines hold, as Ray places them."""

from types import SimpleNamespace

import pytest
import ray

from cluster import machines as machines_module
from cluster.machines import Cluster, Machine, read_cluster


@pytest.mark.parametrize(
    ("machine", "each", "workers"),
    [
        ((2, 0), (1, 0), 2),
        ((16, 4), (1, 1), 4),
        ((3, 8), (1, 1), 3),
        ((2, 1), (0.5, 0.5), 2),
        ((1, 0), (2, 0), 0),
        ((1, 0), (0.3333, 0), 3),
        ((8, 2), (1, 0.6667), 2),  # a share does not reach across two cards
        ((8, 4), (1, 0.5), 8),
        ((8, 5), (1, 2), 2),
    ],
)
def test_a_machine_holds_what_fits_on_it(machine, each, workers):
    assert Machine(cpus=machine[0], gpus=machine[1]).holds(cpus=each[0], gpus=each[1]) == workers


def test_a_worker_lies_on_one_machine():
    cluster = Cluster(machines=(Machine(cpus=0), *[Machine(cpus=1, gpus=1)] * 2), is_local=False)
    assert (cluster.cpus, cluster.gpus) == (2, 2)
    assert [cluster.room(cpus=cpus, gpus=0) for cpus in (1, 2)] == [2, 0]
    assert cluster.text == "1 x (0 CPUs, 0 GPUs) and 2 x (1 CPUs, 1 GPUs)"


@pytest.mark.parametrize(("limit", "machines", "unlimited"), [(3, 4, False), (1, 2, False), (-1, 2, True)])
def test_machines_that_an_autoscaler_may_add_count_up_to_their_limit(monkeypatch, limit, machines, unlimited):
    kinds = [SimpleNamespace(resources={"CPU": 8, "GPU": 1}, max_count=limit)]
    there = [{"Alive": alive, "Resources": {"CPU": cpus, "GPU": 1}} for alive, cpus in ((True, 8), (False, 8))]
    head = {"Alive": True, "Resources": {}}
    monkeypatch.setattr(ray, "nodes", lambda: [head, *there])
    config = SimpleNamespace(node_group_configs=kinds)
    monkeypatch.setattr(machines_module.state, "get_cluster_config", lambda: config)
    cluster = read_cluster(is_local=False)
    assert (len(cluster.machines), cluster.is_unlimited) == (machines, unlimited)
