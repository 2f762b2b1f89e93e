"""How a cluster is divided, and what is said where it cannot be."""

from pathlib import Path

import pytest

from cluster.session import Cluster, PlacementError
from pipeline import evaluate, run
from pipeline.command import WorkersConfig
from pipeline.recipe import PRESETS
from pipeline.workers import divide

RECIPE = PRESETS["digits"]()  # one train worker, one thread each


def cluster(cpus: float, gpus: float = 0) -> Cluster:
    return Cluster(cpus=cpus, gpus=gpus, is_local=True)


@pytest.mark.parametrize(("cpus", "generators"), [(1, 1), (2, 1), (8, 7)])
def test_generators_take_the_cpus_that_the_train_worker_leaves(cpus: int, generators: int) -> None:
    workers = divide(cluster(cpus), WorkersConfig(), RECIPE)
    loop = workers.loop
    assert (workers.device, workers.cpus, workers.gpus) == ("cpu", 1, 0)
    assert (loop.generators, loop.generator_gpus, loop.trainer_gpus) == (generators, 0, 0)
    assert loop.generators * loop.generator_cpus + loop.trainer_cpus <= cpus


@pytest.mark.parametrize(("gpus", "generators"), [(1, 1), (2, 1), (8, 7)])
def test_generators_take_the_gpus_that_the_train_worker_leaves(gpus: int, generators: int) -> None:
    workers = divide(cluster(16, gpus), WorkersConfig(), RECIPE)
    loop = workers.loop
    assert (workers.device, workers.gpus) == ("cuda", 1)
    assert loop.generators == generators
    assert loop.generators * loop.generator_gpus + loop.trainer_gpus <= gpus
    assert loop.trainer_gpus == (0.5 if gpus == 1 else 1)


def test_more_generators_than_places_share_them() -> None:
    loop = divide(cluster(2), WorkersConfig(generators=5), RECIPE).loop
    assert loop.generators == 5
    assert 5 * loop.generator_cpus + loop.trainer_cpus <= 2 + 1e-9


def test_gpus_are_left_alone_where_the_cpu_is_asked_for() -> None:
    workers = divide(cluster(4, gpus=1), WorkersConfig(device="cpu"), RECIPE)
    assert (workers.device, workers.gpus, workers.loop.trainer_gpus) == ("cpu", 0, 0)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(PlacementError, match="the cluster has no GPU: use auto or cpu"):
        divide(cluster(4), WorkersConfig(device="cuda"), RECIPE)


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (run.main, ["--workers.cpus", "2"]),
        (evaluate.main, ["--model", "evaluated_models:build", "--norm", "Linf", "--radius", "0.1", "--cpus", "2"]),
    ],
)
def test_commands_end_with_one_message_where_there_is_no_place(
    main, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--root", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: cpus is 2, but RAY_ADDRESS names a running cluster")
