#!/usr/bin/env bash
# A probe of a trained encoder:
#   sbatch [--gpus-per-node=1 --cpus-per-task=8 --partition=…] \
#       slurm/probe.sh --checkpoint RUN --task FILE --output DIR [key=value …]
#   bash slurm/probe.sh …                              where there is no SLURM
# Run it from the repository's folder.
#SBATCH --job-name=meddap-probe
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=meddap-probe-%j.log
set -euo pipefail

if [ $# -eq 0 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
  echo "usage: sbatch slurm/probe.sh --checkpoint RUN --task FILE --output DIR [key=value ...]   (or bash instead)"
  [ $# -gt 0 ]; exit
fi

# sbatch runs a copy of this file from its spool folder: only the folder of submission is the checkout
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
if [ ! -f eval/probe.py ]; then
  echo "error: $PWD: not the folder of MedDAP; submit from there" >&2
  exit 1
fi
source slurm/python.sh
where "$*"
exec "${python[@]}" -m eval.probe "$@"
