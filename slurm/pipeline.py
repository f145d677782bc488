"""The pipeline of a run as steps that depend on each other: shards → stages → probes → report.

Each step is a command, by its name. `Work` runs one and records how it ended in RUN/pipeline/<step>.json, where whoever
asks later (this machine, a login node) reads it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meddap.disk import write_atomic
from meddap.errors import MeddapError
from meddap.records import read_json

ROOT = Path(__file__).resolve().parent.parent
REQUEUED = 75  # exit status of a training that was asked to stop, and saved
_FOLDER, _FORMER_FOLDER = "pipeline", "road"
_ASKED = "asked.json"


class PipelineError(MeddapError):
    """The pipeline cannot be run; the message says what to do."""


@dataclass(frozen=True)
class Step:
    """One step. It has several `commands` where it is an array, whose tasks are independent of each other."""

    name: str
    kind: str
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """The work of a job: one command, and a record of how it ended. Plain values alone, as it is pickled."""

    command: tuple[str, ...]
    record: str
    log: str | None = None

    def run(self) -> int:
        """Run the command in the repository's folder; return its exit status."""
        mine = {"command": list(self.command), "job": os.environ.get("SLURM_JOB_ID"), "started": time.time()}
        write(Path(self.record), {**mine, "state": "running"})
        if self.log is None:
            status = subprocess.run(self.command, cwd=ROOT).returncode
        else:
            Path(self.log).parent.mkdir(parents=True, exist_ok=True)
            with open(self.log, "ab") as file:
                status = subprocess.run(self.command, cwd=ROOT, stdout=file, stderr=file).returncode
        state = {0: "done", REQUEUED: "requeued"}.get(status, "failed")
        write(Path(self.record), {**mine, "state": state, "status": status, "ended": time.time()})
        return status

    def __call__(self) -> None:
        """Run as a job, which fails with the command's exit status, so that SLURM stops what depends on it."""
        if status := self.run():
            sys.exit(status)


def folder(run: Path) -> Path:
    """Return where a run's records and logs are: RUN/pipeline, or RUN/road where an earlier version began it."""
    former, now = run / _FORMER_FOLDER, run / _FOLDER
    return former if (former / _ASKED).is_file() and not (now / _ASKED).is_file() else now


def ask(run: Path, asked: dict[str, Any]) -> None:
    """Record the user's arguments of `steps`."""
    write(folder(run) / _ASKED, asked)


def asked_before(run: Path) -> dict[str, Any]:
    """Return what `ask` recorded; nothing where no pipeline was begun."""
    path = folder(run) / _ASKED
    overrides = "words" if "words" in read(path) else "overrides"  # an earlier version's name
    asked = read(path, {"config": str, overrides: [str], "tasks": [str], "shard": [str]})
    return {name.replace(overrides, "overrides"): value for name, value in asked.items()}


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record, whole or not at all. Raises PipelineError where that is not possible."""
    try:
        write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        raise PipelineError(
            f"{error.filename or path}: {error.strerror}; make the folder writable, then start again"
        ) from error


def read(path: Path, form: Any = None) -> dict[str, Any]:
    """Return a record of `form` (meddap.records); an empty one where there is none. Raises PipelineError if damaged."""
    if not path.is_file():
        return {}
    record: dict[str, Any] = read_json(
        path, form or {}, "delete it; what it records then counts as not begun", PipelineError
    )
    return record


def record_of(run: Path, step: Step, task: int = 0) -> Path:
    """Return where `Work` records how a step, or a task of it, ended."""
    name = step.name.replace("/", "-") + (f"-{task + 1}" if len(step.commands) > 1 else "")
    return folder(run) / f"{name}.json"


def recorded(run: Path, step: Step, task: int = 0) -> dict[str, Any]:
    """Return what `Work` recorded of a step, or of a task of it; nothing before it began."""
    return read(record_of(run, step, task), {"command": [str], "state": str})


def steps(
    config: str,
    overrides: Sequence[str],
    *,
    run: str,
    data: str,
    stages: Sequence[str],
    shard: Sequence[str] = (),
    tasks: Sequence[str] = (),
) -> list[Step]:
    """Return the steps in an order in which they can run.

    run, data  folder of the run and of its shards; "" where it has several sources: a task then names its data itself
    shard      arguments of slurm/shard.sh without --output: ct|mri|images PARTS --input DIR …; empty where shards exist
    tasks      tasks of probes, each before and after training
    Raises PipelineError for arguments of `shard` that do not fit.
    """
    if shard and not data:
        raise PipelineError("--shard: the configuration has data.sources; shard each of them first, or give data.root")
    prepared = _sharding(shard, data) if shard else []
    last = tuple(step.name for step in prepared[-1:])
    training = []
    for stage in stages:
        command = ("bash", "slurm/pretrain.sh", config, "--stage", stage, *overrides)
        training.append(Step(stage, "pretrain", (command,), last))
        last = (stage,)
    first, probes = stages[0], []
    for task in tasks:
        name = Path(task).stem
        for when, checkpoint, needs in (("before", f"{run}/{first}/00000000", (first,)), ("after", run, last)):
            output = f"{run}/probe/{when}" if len(tasks) == 1 else f"{run}/probe/{name}/{when}"
            own = (f"data={data}",) if data else ()
            arguments = ("--checkpoint", checkpoint, "--task", task, "--output", output, *own)
            probes.append(Step(f"{name}-{when}", "probe", (python("-m", "eval.probe", *arguments),), needs))
    report = python("-m", "eval.report", "--runs", run, "--output", f"{run}/report.html")
    needed = tuple(each.name for each in probes) or last
    return [*prepared, *training, *probes, Step("report", "report", (report,), needed)]


def _sharding(arguments: Sequence[str], data: str) -> list[Step]:
    modality, parts = (*arguments[:2], "", "")[:2]
    if modality not in ("ct", "mri", "images") or not re.fullmatch("[1-9][0-9]*", parts):
        raise PipelineError(
            f"--shard {shlex.join(arguments)!r}: expected ct, mri or images, the number of parts, then --input DIR"
        )
    if any(argument.partition("=")[0] == "--output" for argument in arguments):
        raise PipelineError("--shard: --output is the configuration's data.root; leave it out")
    script = (f"data_prep/shard_{modality}.py", *arguments[2:], "--output", data)
    if int(parts) == 1:
        return [Step("shard", "shard", (python(*script),))]
    array = tuple(python(*script, f"part={part + 1}/{parts}") for part in range(int(parts)))
    merge = python("-m", "data_prep.merge", data)
    return [Step("shard", "shard", array), Step("merge", "merge", (merge,), ("shard",))]


def python(*arguments: str) -> tuple[str, ...]:
    """Return a command of ours, in the environment that slurm/python.sh finds."""
    return ("bash", "-c", 'source slurm/python.sh && exec "${python[@]}" "$@"', "meddap", *arguments)


def shown(command: Sequence[str]) -> str:
    """Return a command as a person would type it."""
    return shlex.join(["python", *command[4:]] if command[:2] == ("bash", "-c") else command)


def state(run: Path, step: Step) -> str:
    """Return `done`, `failed`, `running`, `requeued` or, before it began, ""; for arrays, the worst part's state.

    A record of another command does not count: a step whose command has changed has not begun.
    """
    states = []
    for task, command in enumerate(step.commands):
        record = recorded(run, step, task)
        states.append(record.get("state", "") if record.get("command") == list(command) else "")
    for worst in ("failed", "running", "requeued", ""):
        if worst in states:
            return worst
    return "done"
