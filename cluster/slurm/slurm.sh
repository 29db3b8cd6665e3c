#!/usr/bin/env bash
# The quickstart under SLURM: one Ray cluster for the job, one Ray node per machine, one worker per GPU.
#
#     make setup                                # once, on a file system that the compute nodes mount
#     .venv/bin/ray get-auth-token --generate >/dev/null
#     sbatch cluster/slurm/slurm.sh             # from the root of the repository
#     sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=64 cluster/slurm/slurm.sh      # other sizes
#     RAYSTAGE_IMAGE=raystage.sif sbatch cluster/slurm/slurm.sh                         # in a container: see below
#
# Two minutes before the time limit the workers save, and the job goes back into the queue, where it continues from
# there. The same happens when the job is preempted, on clusters that send it the signal and then wait
# (PreemptParameters=send_user_signal, GraceTime), and after `scancel --batch --signal=TERM JOB`. A job that failed is
# submitted again as it is: finished stages are in the store and are not trained again.
# CHANGE marks what you have to fill in.
#
#SBATCH --job-name=raystage
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=raystage-%j.log
# CHANGE: your partition and account, and for GPUs how many per node.
##SBATCH --partition=gpu
##SBATCH --account=project
##SBATCH --gpus-per-node=8
# --ntasks-per-node=1: Ray starts the worker processes itself. --exclusive: `ray symmetric-run` refuses to
# start beside another Ray, and stops every Ray process of yours on the node when it ends.
# --signal=B:TERM@120: to this script alone, which tells the driver; Ray must stay until the workers have saved.
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}"

# The store must be on a file system that all nodes share. CHANGE to scratch if home is slow or small.
store="$SLURM_SUBMIT_DIR/.raystage"
mkdir -p "$store"

# Other people use the nodes before and after the job, if not during it.
token="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token"

# Where python and ray are: in the environment of `make setup`, or in the container that RAYSTAGE_IMAGE names. A name
# that ends with .sif is for Apptainer, any other for pyxis and enroot (srun --container-image), such as
# REGISTRY#raystage:0.1.0-cuda or a file raystage.sqsh. CHANGE if raystage is installed elsewhere (module load ...,
# conda activate ...).
on_node=() in_container=()
case ${RAYSTAGE_IMAGE:-} in
"")
    # shellcheck disable=SC1091
    source .venv/bin/activate
    ;;
*.sif)
    in_container=(apptainer exec --nv --bind "$SLURM_SUBMIT_DIR" --bind "$store" --bind "$(dirname "$token")"
        --pwd "$SLURM_SUBMIT_DIR" "$RAYSTAGE_IMAGE")
    ;;
*)
    on_node=(--container-image "$RAYSTAGE_IMAGE" --container-workdir "$SLURM_SUBMIT_DIR"
        --container-mounts "$SLURM_SUBMIT_DIR:$SLURM_SUBMIT_DIR,$store:$store,$(dirname "$token"):$(dirname "$token")")
    ;;
esac

# This script runs on the first node, which becomes the head. Its address must be one that the other nodes reach,
# on one of its own network interfaces. CHANGE if the first interface is not the right one.
head_ip=$(hostname --all-ip-addresses | cut -d ' ' -f 1)
export RAY_ADDRESS="$head_ip:6379"

# Ray waits 30 s for all nodes; Python on a busy network file system can take longer to start.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
# For jobs that are submitted to this cluster: `ray job stop` kills the driver after 3 s unless this says more.
export RAY_JOB_STOP_WAIT_TIME_S=60
export PYTHONUNBUFFERED=1

# With more than one network, gloo and NCCL need to know which one to use. CHANGE to the fast interface.
# export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5

# One worker for each GPU, or for each node without GPUs; they share out the CPUs of their node. CHANGE the batch for a
# schedule of your own, or take the line out: a global batch has at least one sequence for each worker, and this
# schedule's have 64 tokens.
gpus=${SLURM_GPUS_ON_NODE:-0}
count=$((SLURM_JOB_NUM_NODES * (gpus ? gpus : 1)))
workers=(
    --set "training.workers=$count"
    --set "training.cpus_per_worker=$((SLURM_CPUS_PER_TASK / (gpus ? gpus : 1)))"
    --set "training.gpus_per_worker=$((gpus ? 1 : 0))"
    --set "training.global_batch_tokens=$((64 * (count > 2 ? count : 2)))"
)

# The process id of the driver, which runs on this node.
driver="$SLURM_SUBMIT_DIR/.raystage-$SLURM_JOB_ID.pid"
trap 'rm -f "$driver"' EXIT
# Has the workers save, and puts the job back into the queue as soon as they have: the other nodes take a minute more to
# notice that the head has gone, and there may not be a minute.
is_asked=
# shellcheck disable=SC2329
leave() {
    local pid
    is_asked=yes
    echo "slurm.sh: asked to end: the workers save, and the job goes back into the queue"
    if pid=$(cat "$driver" 2>/dev/null) && kill -TERM "$pid" 2>/dev/null; then
        while kill -0 "$pid" 2>/dev/null; do sleep 1; done
    fi
    scontrol requeue "$SLURM_JOB_ID"
}
trap leave TERM

# The same command runs on every node. On the head it starts Ray, waits for the others, runs what comes after `--`
# and exits with its status. On the others it joins, and stays until the head has been gone for a minute (Ray then
# logs errors about the GCS; they are not errors of the job). CHANGE the schedule.
# shellcheck disable=SC2016
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" "${on_node[@]}" "${in_container[@]}" \
    ray symmetric-run \
    --address "$RAY_ADDRESS" \
    --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" \
    --num-gpus "$gpus" \
    --temp-dir "/tmp/ray-$SLURM_JOB_ID" \
    --disable-usage-stats \
    -- \
    bash -c 'echo $$ >"$0" && exec "$@"' "$driver" \
    python jobs/run.py jobs/schedules/quickstart.yaml --store "$store" "${workers[@]}" &
run=$!

# The signal interrupts `wait`, so it is repeated.
status=0
wait "$run" || status=$?
while [[ -n $is_asked ]]; do
    is_asked='' status=0
    wait "$run" || status=$?
done
exit "$status"
