#!/bin/bash
# One Ray in one SLURM allocation, and one fewchannels command on it: a capture, a sweep or an analysis.
#   sbatch docs/cluster/slurm.sh capture --model /data/flux --dtype bfloat16 --manifest m.parquet --out /scratch/me/RUN \
#     --actors 8 --gpus-per-actor 1 --cpus-per-actor 8
# Fill in the lines below: partition, nodes, GPUs, CPUs, time. --out must be on a file system that all nodes share.
# Near the time limit the command is interrupted, what is finished is kept, and the job is requeued: the same command then
# resumes. It ends by itself when nothing is left to do.
#SBATCH --job-name=fewchannels
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [ "$#" -eq 0 ]; then
    echo "usage: sbatch $0 capture --model ... --manifest ... --out /shared/RUN --actors N" >&2
    exit 2
fi
# Two jobs may share a node, so that each has ports of its own.
port=$((20000 + SLURM_JOB_ID % 20000))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$head:$port"
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
export RAY_ADDRESS="$address"

start_ray() {
    srun --overlap --export=ALL --ntasks-per-node=1 "$@" --num-cpus="$cpus" --num-gpus="$gpus" --block &
}

start_ray --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --node-ip-address="$head" --port="$port" \
    --include-dashboard=false
until ray health-check --address "$address" >/dev/null 2>&1; do
    kill -0 "$!" # else the head has ended, and so does this script
    sleep 1
done
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    start_ray --nodes="$others" --ntasks="$others" --exclude="$head" ray start --address="$address"
fi

set -m # else the shell would have the command ignore interrupts
fewchannels "$@" --address "$address" &
command=$!
set +m
requeue=""
trap 'requeue=yes; kill -INT "$command"' USR1
code=0
wait "$command" || code=$?
if [ -n "$requeue" ]; then # that wait was ended by the signal
    code=0
    wait "$command" || code=$?
    if [ "$code" -ne 0 ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
