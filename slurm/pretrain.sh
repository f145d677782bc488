#!/usr/bin/env bash
# Pretraining, one process per GPU, on one node or several:
#   sbatch [--nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=12 --partition=… --time=…] \
#       slurm/pretrain.sh CONFIG [--stage NAME] [key=value …]
#   bash slurm/pretrain.sh CONFIG …                    where there is no SLURM: every GPU of this machine, or its CPU;
#                                                      MEDDAP_PROCESSES=2 sets how many processes
# Run it from the repository's folder. Two minutes before the time limit SLURM sends USR1: the step is finished, saved,
# and the job goes back to the queue. So it does when a process or a node is lost, as long as each start saves something.
# Requeued, it goes on from its last checkpoint.
#SBATCH --job-name=meddap-pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=meddap-pretrain-%j.log
set -euo pipefail
{  # read to its end before it begins: the file may change while the job runs

if [ $# -eq 0 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
  echo "usage: sbatch slurm/pretrain.sh CONFIG [--stage NAME] [key=value ...]   (or bash instead of sbatch)"
  [ $# -gt 0 ]; exit
fi

# sbatch runs a copy of this file from its spool folder: only the folder of submission is the checkout
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
if [ ! -f pretrain/train.py ]; then
  echo "error: $PWD: not the folder of MedDAP; submit from there" >&2
  exit 1
fi
config=$1
shift
source slurm/python.sh
train=(-m pretrain.train --config "$config" "$@")

if [ -z "${SLURM_JOB_ID:-}" ]; then
  where "$config $*"
  gpus=$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)
  processes=${MEDDAP_PROCESSES:-$gpus}
  if [ "$processes" -gt 1 ]; then
    exec "${python[@]}" -m torch.distributed.run --standalone --nproc-per-node="$processes" "${train[@]}"
  fi
  exec "${python[@]}" "${train[@]}"
fi

tasks=${SLURM_NTASKS_PER_NODE:-1}
if [ "${SLURM_GPUS_ON_NODE:-0}" -gt "$tasks" ]; then
  echo "error: $SLURM_GPUS_ON_NODE GPUs on a node, but $tasks tasks: submit with --ntasks-per-node=$SLURM_GPUS_ON_NODE" >&2
  exit 1
fi
where "start $((${SLURM_RESTART_COUNT:-0} + 1)): $config $*"

# one process that ends badly ends the others: they would wait for it
export MEDDAP_PROGRESS=$PWD/.meddap-progress-$SLURM_JOB_ID  # made by the training when it has saved
rm -f "$MEDDAP_PROGRESS"
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "${python[@]}" "${train[@]}" &
step=$!
asked=
trap 'asked=1; where "USR1: finishing the step"; kill -USR1 "$step" 2>/dev/null || true' USR1
while :; do  # a signal ends `wait` before the step has ended
  status=0
  wait "$step" || status=$?
  kill -0 "$step" 2>/dev/null || break
done
# asked to stop (75; 138 before it could listen), or lost a process or a node: then another start is worth it where this
# one came further than the last
if [ "$status" -eq 75 ] || [ "$status" -eq 138 ] || { [ "$status" -ne 0 ] && [ -n "$asked" ]; }; then
  where "asked to stop; back to the queue"
  scontrol requeue "$SLURM_JOB_ID"
elif [ "$status" -ne 0 ] && [ -e "$MEDDAP_PROGRESS" ]; then
  where "exit $status after a new checkpoint; back to the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
rm -f "$MEDDAP_PROGRESS"
exit "$status"
}
