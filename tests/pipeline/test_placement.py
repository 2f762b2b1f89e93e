"""How a cluster is divided, and what is said where it cannot be."""

from dataclasses import replace
from pathlib import Path

import pytest
from commands import run_apart

from cluster.machines import Cluster, Machine
from cluster.session import PlacementError
from pipeline import evaluate, run
from pipeline.flags import WorkersConfig
from pipeline.placement import divide
from pipeline.presets import PRESETS
from pipeline.recipe import Recipe


def recipe(*, units: int = 8, trainers: int = 1) -> Recipe:
    digits = PRESETS["digits"]()  # one thread each
    schedule = replace(digits.schedule, round_cohorts=units)
    return replace(digits, schedule=schedule, train=replace(digits.train, workers=trainers))


def cluster(cpus: float, gpus: float = 0, *, nodes: int = 1) -> Cluster:
    return Cluster(machines=(Machine(cpus=cpus / nodes, gpus=gpus / nodes),) * nodes, is_local=True)


@pytest.mark.parametrize(("cpus", "generators"), [(1, 1), (2, 1), (8, 7), (32, 8)])
def test_generators_take_the_cpus_that_the_train_worker_leaves_up_to_one_a_unit(cpus: int, generators: int) -> None:
    workers = divide(cluster(cpus), WorkersConfig(), recipe())
    loop = workers.loop
    assert (workers.device, workers.cpus, workers.gpus) == ("cpu", 1, 0)
    assert (loop.generators, loop.generator_gpus, loop.trainer_gpus) == (generators, 0, 0)
    assert loop.generators * loop.generator_cpus + loop.trainer_cpus <= cpus


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("trainers", range(1, 9))
@pytest.mark.parametrize("nodes", [1, 2])
def test_every_actor_has_a_gpu_or_half_of_the_only_one_or_the_placement_is_refused(gpus, trainers, nodes) -> None:
    if gpus % nodes:
        return
    machines = cluster(4, gpus, nodes=nodes)  # fewer CPUs than GPUs
    if trainers >= gpus and (trainers, gpus) != (1, 1):
        with pytest.raises(PlacementError, match=rf"{trainers + 1} in all, and the cluster has {gpus}\. Set train"):
            divide(machines, WorkersConfig(), recipe(trainers=trainers))
        return
    loop = divide(machines, WorkersConfig(), recipe(trainers=trainers)).loop
    assert loop.generator_gpus == loop.trainer_gpus == (0.5 if gpus == 1 else 1)
    assert loop.generators == max(1, gpus - trainers)  # nobody idles
    assert machines.room(cpus=loop.trainer_cpus, gpus=loop.trainer_gpus) >= loop.generators + trainers


def test_a_trial_has_a_gpu_or_the_share_that_is_asked_for_and_none_on_cpus() -> None:
    asked = WorkersConfig(trial_gpus=0.25, trials=3)
    assert divide(cluster(4, 2), WorkersConfig(), recipe()).trial_gpus == 1
    assert divide(cluster(4), WorkersConfig(), recipe()).trial_gpus == 0
    workers = divide(cluster(4, 2), asked, recipe())
    assert (workers.trial_gpus, workers.trials) == (0.25, 3)
    with pytest.raises(PlacementError, match=r"workers\.trial_gpus is 0\.25, but networks run on CPUs here"):
        divide(cluster(4), asked, recipe())


@pytest.mark.ray
@pytest.mark.parametrize(("gpus", "generators"), [(1, {1: 1}), (4, {1: 3, 3: 1})])
def test_ray_places_what_was_divided_whoever_comes_first(gpus, generators) -> None:
    assert run_apart(Path(__file__).with_name("placed_on_gpus.py"), gpus, *generators) == [
        f"{count} generators, {trainers} train workers: placed" for trainers, count in generators.items()
    ]


def test_no_generator_holds_a_gpu_for_which_a_round_has_no_unit() -> None:
    assert divide(cluster(16, 8), WorkersConfig(), recipe(units=2)).loop.generators == 2


@pytest.mark.parametrize("preset", ["cifar10-linf", "cifar10-l2"])
def test_the_presets_for_clusters_have_a_unit_for_every_generator_of_eight_gpus(preset) -> None:
    assert divide(cluster(64, 8), WorkersConfig(), PRESETS[preset]()).loop.generators == 7


def test_the_preset_for_one_gpu_shares_it_and_has_a_unit_to_attack_while_another_is_written() -> None:
    preset = PRESETS["cifar10-small"]()
    loop = divide(cluster(16, 1), WorkersConfig(), preset).loop
    assert (loop.generators, loop.generator_gpus, loop.trainer_gpus) == (1, 0.5, 0.5)
    assert preset.schedule.round_cohorts > 1
    assert preset.schedule.cohort_images == preset.attack.batch


@pytest.mark.parametrize(("gpus", "generators", "left"), [(1, 2, 1), (4, 4, 3)])
def test_more_generators_than_gpus_are_refused(gpus, generators, left) -> None:
    with pytest.raises(PlacementError, match=rf"room for {left} on {gpus} GPUs: set it to {left} or less"):
        divide(cluster(16, gpus), WorkersConfig(generators=generators), recipe())


@pytest.mark.parametrize(("cpus", "nodes"), [(2, 1), (2, 2)])
def test_more_generators_than_cpus_share_them(cpus, nodes) -> None:
    machines = cluster(cpus, nodes=nodes)
    loop = divide(machines, WorkersConfig(generators=5), recipe()).loop
    assert loop.generators == 5
    assert machines.room(cpus=loop.generator_cpus, gpus=0) >= 6


@pytest.mark.parametrize("gpus", [0, 8])
def test_no_generator_is_started_that_would_never_have_a_unit(gpus) -> None:
    config = WorkersConfig(generators=7 if gpus else 1000)
    assert divide(cluster(16, gpus), config, recipe(units=2)).loop.generators == 2


def test_nodes_that_have_gpus_and_no_cpu_are_refused() -> None:
    machines = Cluster(machines=(Machine(cpus=16), Machine(cpus=0, gpus=4)), is_local=False)
    with pytest.raises(PlacementError, match=r"4 workers with 1 GPUs .* do not fit .* 1 x \(0 CPUs, 4 GPUs\)"):
        divide(machines, WorkersConfig(), recipe())


def test_a_cluster_without_a_limit_gets_as_many_as_it_has_machines_for() -> None:
    machines = Cluster(machines=(Machine(cpus=8, gpus=2),), is_local=False, is_unlimited=True)
    loop = divide(machines, WorkersConfig(), recipe()).loop
    assert (loop.generators, loop.generator_cpus) == (1, 1)


def test_gpus_are_left_alone_where_the_cpu_is_asked_for() -> None:
    workers = divide(cluster(4, gpus=1), WorkersConfig(device="cpu"), recipe())
    assert (workers.device, workers.gpus, workers.loop.trainer_gpus) == ("cpu", 0, 0)


@pytest.mark.parametrize(
    ("main", "flags", "said"),
    [
        (run.main, ["--workers.cpus", "0"], "workers.cpus is 0; it must be at least 1"),
        (run.main, ["--workers.generators=-1"], "workers.generators is -1; it must be at least 1"),
        (evaluate.main, ["--model", "evaluated_models:build", "--cpus", "0"], "--cpus is 0; it must be at least 1"),
        (run.main, ["--workers.cpus", "100000"], "workers.cpus is 100000, and this machine has"),
        (evaluate.main, ["--model", "evaluated_models:build", "--cpus", "100000"], "--cpus is 100000, and this machin"),
        (run.main, ["--train.from-cache", ""], "--train.from-cache is given an empty value: name one, or leave"),
        (
            evaluate.main,
            ["--model=evaluated_models:build", "--compare="],
            "--compare is given an empty value: name one",
        ),
    ],
)
def test_no_workers_and_too_many_and_empty_values_are_refused_before_anything_starts(main, flags, said, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(PlacementError, match="the cluster has no GPU: use auto or cpu"):
        divide(cluster(4), WorkersConfig(device="cuda"), recipe())


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
