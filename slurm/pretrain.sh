#!/usr/bin/env bash
# Pretraining on one node:
#   sbatch [--gres=gpu:1 --partition=…] slurm/pretrain.sh CONFIG [key=value …]
#   bash slurm/pretrain.sh CONFIG [key=value …]        where there is no SLURM
# Run it from the repository's folder. A job that is requeued goes on from its last checkpoint.
#SBATCH --job-name=meddap-pretrain
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=meddap-pretrain-%j.log
set -euo pipefail

if [ $# -eq 0 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
  echo "usage: sbatch slurm/pretrain.sh CONFIG [key=value ...]   (or bash instead of sbatch)"
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
where "$config $*"
exec "$python" -m pretrain.train --config "$config" "$@"
