# Sourced by the batch scripts, in the repository's folder: sets ${python[@]} and the number of threads.
#   MEDDAP_PYTHON     the interpreter, .venv/bin/python where it is not set
#   MEDDAP_CONTAINER  prefix of it, e.g. "apptainer exec --nv meddap.sif"
python=(${MEDDAP_CONTAINER:-} "${MEDDAP_PYTHON:-.venv/bin/python}")  # the container's prefix in words, a path whole
if ! command -v "${python[0]}" >/dev/null; then
  echo "error: ${python[0]}: not found; run 'make setup' or set MEDDAP_PYTHON" >&2
  exit 1
fi

# as many threads as the job was given; libraries would take every core of the node
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
fi

# when a process is lost, one line of ours says it; PyTorch would add a page of addresses
export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR}

# said at the start of every log
where() { echo "$(date -Is) ${SLURM_JOB_ID:+job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}: }$*"; }
