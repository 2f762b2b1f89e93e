#!/usr/bin/env bash
# A Ray cluster in one Slurm allocation, and a command on it:
#
#   sbatch cluster/slurm.sh python -m pipeline.run cifar10-linf --data.root /shared/datasets --root /shared/rap
#
# The same again resumes. The lines marked CHANGE name what is yours. Every node sees this directory, the environment,
# --data.root and --root.
#SBATCH --job-name=rap
#SBATCH --output=%x-%j.log
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
# CHANGE: the four lines above that count; --exclusive keeps Ray's ports this job's, and the last one ends the command in
# good order a minute before the time is up.
set -euo pipefail

if (($# == 0)); then
  echo "usage: sbatch cluster/slurm.sh python -m pipeline.run [--flags]" >&2
  exit 2
fi
cd "$SLURM_SUBMIT_DIR"
# shellcheck disable=SC1091
source .venv/bin/activate  # CHANGE

# Others on the network do not get in: Ray's processes and the command share a token of this job.
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# This script runs on the first node, which is the head.
host=$(hostname -I | cut -d ' ' -f 1)
export RAY_ADDRESS="$host:${RAP_RAY_PORT:-6379}"
others=$((SLURM_JOB_NUM_NODES - 1))
start=(ray start --block --num-cpus "$SLURM_CPUS_ON_NODE" --object-store-memory 2000000000)
step=(srun --cpus-per-task "$SLURM_CPUS_ON_NODE")
count='import sys, ray; ray.init(logging_level="ERROR"); sys.exit(sum(n["Alive"] for n in ray.nodes()) < int(sys.argv[1]))'

wait_for() {
  for _ in {1..60}; do
    if python -c "$count" "$1" 2>/dev/null; then return; fi
    if ! kill -0 $! 2>/dev/null; then break; fi  # the step that was begun last has ended, and said why
    sleep 2
  done
  echo "Ray did not start at $RAY_ADDRESS on $1 of the $SLURM_JOB_NUM_NODES nodes of this job: see above" >&2
  exit 1
}

"${step[@]}" --nodes 1 --ntasks 1 --nodelist "$SLURMD_NODENAME" \
  "${start[@]}" --head --node-ip-address "$host" --port "${RAY_ADDRESS##*:}" --include-dashboard false &
wait_for 1
if ((others)); then
  "${step[@]}" --nodes "$others" --ntasks "$others" --exclude "$SLURMD_NODENAME" "${start[@]}" --address "$RAY_ADDRESS" &
fi
# Work is placed by what the cluster has when the command begins.
wait_for "$SLURM_JOB_NUM_NODES"
exec "$@"
