#!/usr/bin/env bash
# Images to shards in parts, an array job and a merge after it:
#   sbatch [--partition=… --cpus-per-task=8] slurm/shard.sh ct|mri|images PARTS --input DIR --output DIR [key=value …]
#   bash slurm/shard.sh …                              where there is no SLURM: one part after the other
# Run it from the repository's folder, with MEDDAP_SALT set or --salt-file. Started again, it does what is missing.
#SBATCH --job-name=meddap-shard
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=meddap-shard-%j.log
set -euo pipefail

usage="usage: sbatch slurm/shard.sh ct|mri|images PARTS --input DIR --output DIR [key=value ...]   (or bash instead of sbatch)"
if [ $# -eq 0 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
  echo "$usage"
  [ $# -gt 0 ]; exit
fi
if [[ ! $1 =~ ^(ct|mri|images)$ ]] || [[ ! ${2:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "error: ${*:1:2}: expected ct, mri or images, then the number of parts; $usage" >&2
  exit 1
fi

# sbatch runs a copy of this file from its spool folder: only the folder of submission is the checkout
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
if [ ! -f data_prep/sharding/run.py ]; then
  echo "error: $PWD: not the folder of MedDAP; submit from there" >&2
  exit 1
fi
source slurm/python.sh
modality=$1
parts=$2
arguments=("${@:3}")

output=
for ((at = 0; at < ${#arguments[@]}; at++)); do
  case ${arguments[at]} in
    --output) output=${arguments[at + 1]:-} ;;
    --output=*) output=${arguments[at]#--output=} ;;
  esac
done
if [ -z "$output" ]; then
  echo "error: no --output; $usage" >&2
  exit 1
fi

shard() {  # PART
  where "part $1 of $parts"
  "${python[@]}" "data_prep/shard_$modality.py" part="$1/$parts" ${SLURM_CPUS_PER_TASK:+workers=$SLURM_CPUS_PER_TASK} "${arguments[@]}"
}
merge() { [ "$parts" -eq 1 ] || "${python[@]}" -m data_prep.merge "$output"; }

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  shard "$SLURM_ARRAY_TASK_ID"
elif [ -n "${MEDDAP_MERGE:-}" ]; then
  merge
elif command -v sbatch >/dev/null; then
  # what this job was given, its parts are given too
  given=()
  [ -n "${SLURM_JOB_PARTITION:-}" ] && given+=(--partition="$SLURM_JOB_PARTITION")
  [ -n "${SLURM_JOB_ACCOUNT:-}" ] && given+=(--account="$SLURM_JOB_ACCOUNT")
  [ -n "${SLURM_JOB_QOS:-}" ] && given+=(--qos="$SLURM_JOB_QOS")
  each=("${given[@]}")
  [ -n "${SLURM_CPUS_PER_TASK:-}" ] && each+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
  [ -n "${SLURM_MEM_PER_NODE:-}" ] && each+=(--mem="$SLURM_MEM_PER_NODE")
  # sbatch would take this job's own numbers for its options
  for name in ${!SLURM_@}; do [ "$name" = SLURM_CONF ] || unset "$name"; done
  array=$(sbatch --parsable "${each[@]}" --array="1-$parts" --output=meddap-shard-%A-%a.log slurm/shard.sh "$@")
  last=$(MEDDAP_MERGE=1 sbatch --parsable "${given[@]}" --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes \
    --job-name=meddap-merge --output=meddap-merge-%j.log slurm/shard.sh "$@")
  echo "parts: job ${array%%;*}, logs meddap-shard-${array%%;*}-PART.log; merge: job ${last%%;*}"
else
  for part in $(seq "$parts"); do shard "$part"; done
  merge
fi
