#!/bin/bash
# A SLURM array: each of its tasks captures one part of a manifest as a run of its own, on one GPU, without Ray.
#   fewchannels manifest split manifest.parquet --parts 16 -o PARTS
#   sbatch --array=0-15 docs/cluster/slurm_array.sh PARTS RUNS --model /data/flux --dtype bfloat16
#   fewchannels runs merge RUNS/* --out RUN
# Fill in the lines below: partition, CPUs, time. PARTS and RUNS must be on a file system that all nodes share. Near the time
# limit a task is interrupted, what is finished is kept, and the task is requeued: it then resumes.
#SBATCH --job-name=fewchannels
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [ "$#" -lt 2 ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    echo "usage: sbatch --array=0-15 $0 PARTS RUNS [options of fewchannels capture]" >&2
    exit 2
fi
parts=$1 runs=$2
shift 2
printf -v part '%04d' "$SLURM_ARRAY_TASK_ID"

set -m # else the shell would have the command ignore interrupts
fewchannels capture --manifest "$parts/part-$part.parquet" --out "$runs/$part" --actors 1 \
    --cpus-per-actor "${SLURM_CPUS_PER_TASK:-1}" "$@" &
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
