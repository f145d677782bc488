# Sourced by the batch scripts, in the repository's folder: sets $python and the number of threads.
python=${MEDDAP_PYTHON:-.venv/bin/python}
if ! command -v "$python" >/dev/null; then
  echo "error: $python: not found; run 'make setup' or set MEDDAP_PYTHON" >&2
  exit 1
fi

# as many threads as the job was given; libraries would take every core of the node
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
fi

# said at the start of every log
where() { echo "$(date -Is) ${SLURM_JOB_ID:+job $SLURM_JOB_ID on ${SLURMD_NODENAME:-?}: }$*"; }
