#!/usr/bin/env bash
# The quickstart under SLURM: one Ray cluster for the job, one Ray node per machine.
#
#     make setup                           # once, on a file system that the compute nodes mount
#     .venv/bin/ray get-auth-token --generate >/dev/null
#     sbatch cluster/slurm.sh              # from the root of the repository
#
# Submit a job that ran out of time again as it is: finished stages are in the store and are not trained again.
# CHANGE marks what you have to fill in.
#
#SBATCH --job-name=raystage
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --output=raystage-%j.log
# CHANGE: your partition and account, and for GPUs how many per node.
##SBATCH --partition=gpu
##SBATCH --account=project
##SBATCH --gpus-per-node=1
# --ntasks-per-node=1: Ray starts the worker processes itself. --exclusive: `ray symmetric-run` refuses to
# start beside another Ray, and stops every Ray process of yours on the node when it ends.
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}"
# CHANGE if raystage is installed elsewhere (module load ..., conda activate ...).
# shellcheck disable=SC1091
source .venv/bin/activate

# The store must be on a file system that all nodes share. CHANGE to scratch if home is slow or small.
store="$SLURM_SUBMIT_DIR/.raystage"

# This script runs on the first node, which becomes the head. Its address must be one that the other nodes reach,
# on one of its own network interfaces. CHANGE if the first interface is not the right one.
head_ip=$(hostname --all-ip-addresses | cut -d ' ' -f 1)
export RAY_ADDRESS="$head_ip:6379"

# Other people use the nodes before and after the job, if not during it. The token is in ~/.ray/auth_token.
export RAY_AUTH_MODE=token

# Ray waits 30 s for all nodes; Python on a busy network file system can take longer to start.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
export PYTHONUNBUFFERED=1

# With more than one network, gloo and NCCL need to know which one to use. CHANGE to the fast interface.
# export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0

# The same command runs on every node. On the head it starts Ray, waits for the others, runs what comes after `--`
# and exits with its status. On the others it joins, and stays until the head has been gone for a minute (Ray then
# logs errors about the GCS; they are not errors of the job). For GPUs add
# `--set training.gpus_per_worker=1` at the end.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run \
    --address "$RAY_ADDRESS" \
    --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" \
    --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    --temp-dir "/tmp/ray-$SLURM_JOB_ID" \
    --disable-usage-stats \
    -- \
    python jobs/run.py jobs/schedules/quickstart.yaml --store "$store"
