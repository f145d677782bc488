"""What the tests on a real SLURM share: whether one answers, waiting for jobs, and leaving nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
STATE = Path(os.environ.get("SLURM_STATE", "/tmp/slurm-local"))  # of ../shared/tools/slurm_up.sh


def slurm_or_skip(nodes: int = 1) -> None:
    """Skip where no SLURM with so many nodes answers."""
    if shutil.which("sbatch") is None:
        pytest.skip("needs SLURM: no sbatch here")
    found = subprocess.run(["sinfo", "-h", "-N", "-o", "%N %t"], capture_output=True, text=True)
    up = {line.split()[0] for line in found.stdout.splitlines() if line.split()[1] in ("idle", "mix", "alloc")}
    if found.returncode or len(up) < nodes:
        pytest.skip(f"needs a running SLURM with {nodes} nodes; {len(up)} answer")


def until(true: Callable[[], object], seconds: float, why: Callable[[], str]) -> None:
    """Wait until `true()`; after `seconds` the test fails with `why()`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, why()
        time.sleep(0.2)


def queued(*jobs: str) -> str:
    """What is left of the jobs in the queue."""
    return subprocess.run(["squeue", "-h", "-j", ",".join(jobs)], capture_output=True, text=True).stdout.strip()


def cancel(*jobs: str) -> None:
    """End jobs, and wait until they are gone."""
    subprocess.run(["scancel", "--signal=KILL", "--full", *jobs], capture_output=True)
    subprocess.run(["scancel", *jobs], capture_output=True)
    end = time.monotonic() + 30
    while queued(*jobs) and time.monotonic() < end:
        time.sleep(0.2)


def text(*logs: Path) -> str:
    """The logs that are there."""
    return "".join(f"--- {log}\n{log.read_text()}" for log in logs if log.is_file())


def kill_node(node: str, job: str) -> None:
    """What a node does that loses its power: its daemon and its part of the job are gone at once."""
    (STATE / "run" / f"slurmd.{node}.pid").is_file() or pytest.skip(f"{node} is not ours to kill")
    daemon = psutil.Process(int((STATE / "run" / f"slurmd.{node}.pid").read_text()))
    steps = set()
    for process in psutil.process_iter():
        try:
            where = process.environ()
            here = where.get("SLURM_JOB_ID") == job and where.get("SLURMD_NODENAME") == node
            if here and "SLURM_STEP_NUM_TASKS" in where:
                steps.add(process.parent())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    daemon.kill()
    for step in steps:
        if step is not None and "slurmstepd" in " ".join(step.cmdline()):
            step.kill()


def revive_node(node: str) -> None:
    """Start the daemon of a node of slurm_up.sh again, where it does not run."""
    pid = STATE / "run" / f"slurmd.{node}.pid"
    if pid.is_file() and psutil.pid_exists(int(pid.read_text())):
        return
    subprocess.run(["slurmd", "-N", node], check=True)
    up = ["sinfo", "-h", "-n", node, "-o", "%t"]
    until(
        lambda: subprocess.run(up, capture_output=True, text=True).stdout.split()[:1] in (["idle"], ["mix"], ["alloc"]),
        60,
        lambda: f"{node} does not come back",
    )
