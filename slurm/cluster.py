"""Resources that jobs request of a cluster: small YAML files in `slurm/clusters/`, one per cluster.

`defaults` holds for every kind of job; `shard`, `merge`, `pretrain`, `probe` and `report` name what differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meddap import settings

FOLDER = Path(__file__).resolve().parent / "clusters"
KINDS = ("shard", "merge", "pretrain", "probe", "report")


@dataclass
class Resources:
    """Resources of one job."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = 1
    gpus: int = 0  # per node
    processes: int | None = None  # per node; null: one per GPU, or one
    cpus: int = 1  # per process
    memory: str | None = None  # per node, e.g. 64G
    hours: float = 1.0  # time limit
    sbatch: dict[str, Any] = field(default_factory=dict)  # further options of sbatch, e.g. constraint: a100


@dataclass
class Cluster:
    """One cluster: how to run there, and the resources of each kind of job, which override `defaults`."""

    modules: list[str] = field(default_factory=list)  # loaded before every job
    setup: list[str] = field(default_factory=list)  # further shell lines before every job
    environment: dict[str, str] = field(default_factory=dict)
    python: str | None = None  # interpreter of the jobs; null: the one that submits
    container: str | None = None  # prefix of the interpreter, e.g. apptainer exec --nv meddap.sif
    at_once: int = 64  # tasks of an array that may run together
    defaults: dict[str, Any] = field(default_factory=dict)
    shard: dict[str, Any] = field(default_factory=dict)
    merge: dict[str, Any] = field(default_factory=dict)
    pretrain: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


def load(name: str) -> Cluster:
    """Return the cluster called `name` in `slurm/clusters/`, or that of a YAML file.

    Raises SettingsError for an unknown name, listing those there are, and for an unknown key.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in FOLDER.glob("*.yaml")))
        raise settings.SettingsError(f"--cluster {name}: no such cluster; known are {known}, or name a YAML file")
    cluster = settings.load(Cluster, path)
    for kind in KINDS:
        resources(cluster, kind)
    return cluster


def resources(cluster: Cluster, kind: str) -> Resources:
    """Return the resources of a job of `kind`. Raises SettingsError for an unknown key."""
    return settings.merge(Resources, ("defaults", cluster.defaults), (kind, getattr(cluster, kind)))


def executor_parameters(cluster: Cluster, kind: str, python: str) -> dict[str, Any]:
    """Return the resources as submitit's SLURM executor takes them. `python` is the interpreter that submits."""
    asked = resources(cluster, kind)
    lines = [f"module load {module}" for module in cluster.modules]
    lines += [f"export {name}={value!r}" for name, value in cluster.environment.items()]
    lines.append(f"export MEDDAP_PYTHON={cluster.python or python!r}")
    if cluster.container:
        lines.append(f"export MEDDAP_CONTAINER={cluster.container!r}")
    where = {name: getattr(asked, name) for name in ("partition", "account", "qos", "nodes")}
    return {
        **{name: value for name, value in where.items() if value is not None},
        **({"mem": asked.memory} if asked.memory else {}),
        **({"gpus_per_node": asked.gpus} if asked.gpus else {}),
        "time": max(1, round(60 * asked.hours)),
        "ntasks_per_node": asked.processes or max(1, asked.gpus),
        "cpus_per_task": asked.cpus,
        "array_parallelism": cluster.at_once,
        "setup": lines + list(cluster.setup),
        "stderr_to_stdout": True,
        "use_srun": False,  # a job's own script starts its processes
        "additional_parameters": {"requeue": True, "signal": "USR1@120", **asked.sbatch},
    }
