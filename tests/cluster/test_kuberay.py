import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pipeline.flags import parse

PROJECT = Path(__file__).parents[2]
JOB = yaml.safe_load((PROJECT / "cluster/kuberay.yaml").read_text())
ABOUT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
SPEC, CLUSTER = JOB["spec"], JOB["spec"]["rayClusterSpec"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
PODS = [group["template"]["spec"] for group in GROUPS]
CONTAINERS = [container for pod in PODS for container in pod["containers"]]


def test_the_manifest_is_a_job_whose_cluster_ends_with_it():
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert SPEC["shutdownAfterJobFinishes"] is True
    assert "RAY_JOB_STOP_WAIT_TIME_S" in yaml.safe_load(SPEC["runtimeEnvYAML"])["env_vars"]


def test_its_command_is_understood_and_keeps_everything_on_the_volume_that_all_pods_mount():
    python, _, module, *argv = shlex.split(SPEC["entrypoint"])
    assert (python, module) == ("python", "pipeline.run")
    command = parse(argv)
    for path in (command.root, command.recipe.data.root or ""):
        for container in CONTAINERS:
            assert any(Path(path).is_relative_to(mount["mountPath"]) for mount in container["volumeMounts"])


@pytest.mark.parametrize("pod", PODS, ids=["head", *(group["groupName"] for group in CLUSTER["workerGroupSpecs"])])
def test_what_a_pod_mounts_is_among_its_volumes(pod):
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == volumes


def test_the_image_has_a_ray_and_a_python_that_the_project_allows():
    (image,) = {container["image"] for container in CONTAINERS}
    ray, python, _ = image.rpartition(":")[2].split("-")
    assert ray == CLUSTER["rayVersion"]
    (pinned,) = [each for each in map(Requirement, ABOUT["dependencies"]) if each.name == "ray"]
    assert pinned.specifier.contains(ray)
    assert SpecifierSet(ABOUT["requires-python"]).contains(f"{python[2]}.{python[3:]}")


def test_workers_have_a_gpu_each_and_their_number_does_not_change_while_the_job_runs():
    for group in CLUSTER["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_what_ray_starts_with_is_text_as_the_operator_demands():
    for group in GROUPS:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
