import os
import re
import shlex
import subprocess
from pathlib import Path

from pipeline.flags import parse

SCRIPT = Path(__file__).parents[2] / "cluster/slurm.sh"
# Stand-ins for a cluster: srun says how it was called; Python makes the token, counts nodes, or is the command.
PROGRAMS = {
    "srun": 'echo "srun $*"',
    "python": 'case "$2" in *secrets*) echo 5ec2e7;; *ray.nodes*) exit "$MISSING";; '
    '*) echo "ran $RAY_ADDRESS $RAY_AUTH_MODE $RAY_AUTH_TOKEN $*"; exit "$CODE";; esac',
}


def run(folder: Path, *argv: str, nodes: int = 2, missing: int = 0, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The script in an allocation, of which `missing` says that it is not whole; all that it and its steps print."""
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text(f"PATH={folder}:$PATH\n")
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    allocation = {
        "SLURM_SUBMIT_DIR": folder,
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_CPUS_ON_NODE": 8,
        "SLURMD_NODENAME": "first",
        "MISSING": missing,
        "CODE": code,
    }
    environment = os.environ | {name: str(value) for name, value in allocation.items()}
    return subprocess.run(["bash", str(SCRIPT), *argv], env=environment, capture_output=True, text=True, check=False)


def test_the_command_that_the_script_names_is_understood():
    (named,) = re.findall(
        r"^#   sbatch cluster/slurm.sh python -m pipeline.run (.*)$", SCRIPT.read_text(), re.MULTILINE
    )
    command = parse(shlex.split(named))
    assert Path(command.root).is_absolute()
    assert Path(command.recipe.data.root or "").is_absolute()


def test_a_head_and_its_workers_are_started_and_the_command_runs_beside_the_head(tmp_path):
    done = run(tmp_path, "python", "-m", "pipeline.run", "mnist", nodes=3)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (ran,) = [line.split() for line in lines if line.startswith("ran ")]
    assert ran[2:] == ["token", "5ec2e7", "-m", "pipeline.run", "mnist"]
    (head,) = [line for line in lines if "--head" in line]
    assert "--nodes 1 --ntasks 1 --nodelist first ray start --block" in head
    assert f"--node-ip-address {ran[1].partition(':')[0]} --port 6379" in head
    (workers,) = [line for line in lines if line.startswith("srun ") and "--head" not in line]
    assert "--nodes 2 --ntasks 2 --exclude first ray start --block" in workers
    assert workers.endswith(f"--address {ran[1]}")


def test_one_node_is_head_and_worker_and_the_job_ends_as_the_command_does(tmp_path):
    done = run(tmp_path, "python", "-m", "pipeline.run", nodes=1, code=7)
    assert done.returncode == 7
    assert done.stdout.count("srun ") == 1


def test_a_head_that_does_not_start_ends_the_job_before_the_command(tmp_path):
    done = run(tmp_path, "python", "-m", "pipeline.run", missing=1)
    assert done.returncode == 1
    assert "Ray did not start" in done.stderr
    assert "ran " not in done.stdout


def test_without_a_command_the_script_says_how_it_is_called(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch cluster/slurm.sh ")
    assert not done.stdout
