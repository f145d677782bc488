"""The road of a run as steps that need each other: shards → stages → probes → report.

Each step is a command of the program, by its name. `Work` runs one and writes down how it ended, in
RUN/road/<step>.json; whoever asks later (the same machine, a login node) reads it there.
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

from meddap.disk import write_atomic
from meddap.settings import SettingsError

ROOT = Path(__file__).resolve().parent.parent
REQUEUED = 75  # exit status of a training that was asked to stop, and saved


@dataclass(frozen=True)
class Step:
    """One step. `commands` are several where it is an array: parts that need nothing of each other."""

    name: str
    kind: str
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """What a job does: one command, and a record of it. Submitted pickled, so that it holds plain values alone."""

    command: tuple[str, ...]
    record: str
    log: str | None = None

    def run(self) -> int:
        """Run the command in the repository's folder; its exit status."""
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
        """As a job: one that fails has the command's exit status, so that SLURM stops what needs it."""
        if status := self.run():
            sys.exit(status)


def write(path: Path, record: dict) -> None:
    """Write a record, whole or not at all."""
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())


def read(path: Path) -> dict:
    """A record; empty where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def record_of(run: Path, step: Step, part: int = 0) -> Path:
    """Where `Work` writes how a step, or a part of it, ended."""
    name = step.name.replace("/", "-") + (f"-{part + 1}" if len(step.commands) > 1 else "")
    return run / "road" / f"{name}.json"


def steps(
    config: str,
    words: Sequence[str],
    *,
    run: str,
    data: str,
    stages: Sequence[str],
    shard: Sequence[str] = (),
    tasks: Sequence[str] = (),
) -> list[Step]:
    """The steps in an order in which they can run.

    run, data  folder of the run and of its shards
    shard      the words of slurm/shard.sh without --output: ct|mri PARTS --input DIR …; empty where there are shards
    tasks      tasks of probes, each before and after training
    Raises SettingsError for words of `shard` that do not fit.
    """
    found, last = [], ()
    if shard:
        found += _sharding(shard, data)
        last = (found[-1].name,)
    for stage in stages:
        command = ("bash", "slurm/pretrain.sh", config, "--stage", stage, *words)
        found.append(Step(stage, "pretrain", (command,), last))
        last = (stage,)
    first, probes = stages[0], []
    for task in tasks:
        name = Path(task).stem
        for when, checkpoint, needs in (("before", f"{run}/{first}/00000000", (first,)), ("after", run, last)):
            output = f"{run}/probe/{when}" if len(tasks) == 1 else f"{run}/probe/{name}/{when}"
            words_of = ("--checkpoint", checkpoint, "--task", task, "--output", output, f"data={data}")
            probes.append(Step(f"{name}-{when}", "probe", (python("-m", "eval.probe", *words_of),), needs))
    report = python("-m", "eval.report", "--runs", run, "--output", f"{run}/report.html")
    return found + probes + [Step("report", "report", (report,), tuple(each.name for each in probes) or last)]


def _sharding(words: Sequence[str], data: str) -> list[Step]:
    modality, parts = (list(words[:2]) + ["", ""])[:2]
    if modality not in ("ct", "mri") or not re.fullmatch("[1-9][0-9]*", parts):
        raise SettingsError(f"--shard {shlex.join(words)!r}: expected ct or mri, the number of parts, then --input DIR")
    if any(word.partition("=")[0] == "--output" for word in words):
        raise SettingsError("--shard: --output is the configuration's data.root; leave it out")
    script = (f"data_prep/shard_{modality}.py", *words[2:], "--output", data)
    if int(parts) == 1:
        return [Step("shard", "shard", (python(*script),))]
    pieces = tuple(python(*script, f"part={part + 1}/{parts}") for part in range(int(parts)))
    merge = python("-m", "data_prep.merge", data)
    return [Step("shard", "shard", pieces), Step("merge", "merge", (merge,), ("shard",))]


def python(*words: str) -> tuple[str, ...]:
    """A command of the program, in the environment that slurm/python.sh finds."""
    return ("bash", "-c", 'source slurm/python.sh && exec "${python[@]}" "$@"', "meddap", *words)


def shown(command: Sequence[str]) -> str:
    """A command as a person would type it."""
    return shlex.join(["python", *command[4:]] if command[:2] == ("bash", "-c") else command)


def state(run: Path, step: Step) -> str:
    """`done`, `failed`, `running`, `requeued` or, before it began, an empty word; of parts the least good one."""
    found = [read(record_of(run, step, part)) for part in range(len(step.commands))]
    same = [one.get("command") == list(command) for one, command in zip(found, step.commands)]
    states = [one["state"] if fits and one else "" for one, fits in zip(found, same)]
    for word in ("failed", "running", "requeued", ""):
        if word in states:
            return word
    return "done"
