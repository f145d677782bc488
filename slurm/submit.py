"""The whole pipeline as jobs that depend on each other: shards → stages → probes → report.

    meddap submit CONFIG --cluster NAME [--shard "ct 64 --input ARCHIVE"] [--task FILE …] [key=value …]
    meddap submit CONFIG --status [key=value …]        where the pipeline stands
    meddap submit CONFIG --local  …                    the same steps here, one after the other

A step that fails stops what depends on it. Submitted again, what is done is left out. `python -m slurm.submit …` is the
same. Run it from the repository's folder, or give absolute paths.
"""

from __future__ import annotations

import argparse
import io
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

from meddap import console
from meddap.console import show
from meddap.disk import disk_errors
from pretrain import checks
from pretrain.config import Config, load, sources_of
from slurm import cluster as clusters
from slurm import pipeline
from slurm.pipeline import PipelineError, Step, Work, read, record_of, recorded, shown, state, write


def submit(run: Path, steps: list[Step], cluster: clusters.Cluster) -> None:
    """Submit what is not done, each step behind those that it needs, and record the jobs in RUN/pipeline/jobs.json."""
    import submitit  # only where jobs are submitted

    if shutil.which("sbatch") is None:
        raise PipelineError("no sbatch here; submit from a login node, or run the pipeline with --local")
    if waiting := queue(jobs(run)):
        raise PipelineError(
            f"{run}: jobs {', '.join(sorted(waiting))} are queued or running; see --status, or scancel them"
        )
    submitted: dict[str, str] = {}
    for step in steps:
        if state(run, step) == "done":
            show(f"{step.name:<24} done before")
            continue
        executor = submitit.SlurmExecutor(
            folder=pipeline.folder(run) / "logs" / "%j", python=shlex.quote(sys.executable)
        )
        asked = clusters.executor_parameters(cluster, step.kind, sys.executable)
        extra = asked["additional_parameters"]
        if before := [submitted[need] for need in step.needs if need in submitted]:
            extra |= {"dependency": "afterok:" + ":".join(before), "kill-on-invalid-dep": "yes"}
        executor.update_parameters(job_name=f"{run.name}-{step.name}", **asked)
        works = []
        for task, command in enumerate(step.commands):
            record = record_of(run, step, task)
            record.unlink(missing_ok=True)
            works.append(Work(command, str(record.resolve())))
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints what the error below says
                if len(works) == 1:
                    job = executor.submit(works[0]).job_id
                else:
                    job = executor.map_array(lambda work: work(), works)[0].job_id.partition("_")[0]
        except submitit.core.utils.FailedJobError as error:
            reason = " ".join(str(error).split()) or "failed without a word"
            raise PipelineError(f"step {step.name}: {reason}; see the cluster file and `sinfo`") from error
        submitted[step.name] = job
        write(pipeline.folder(run) / "jobs.json", {**jobs(run), **submitted})
        after = f", after {', '.join(step.needs)}" if before else ""
        count = f", {len(works)} parts" if len(works) > 1 else ""
        show(f"{step.name:<24} job {job}{count}{after}")
    show(f"logs below {pipeline.folder(run) / 'logs'}; meddap submit … --status shows where they stand")


def local(run: Path, steps: list[Step]) -> bool:
    """Run the pipeline here; return whether every step is done."""
    lost: set[str] = set()
    for step in steps:
        if missing := [need for need in step.needs if need in lost]:
            show(f"{step.name:<24} not run: {', '.join(missing)} failed")
            lost.add(step.name)
            continue
        if state(run, step) == "done":
            show(f"{step.name:<24} done before")
            continue
        show(f"{step.name:<24} {shown(step.commands[0])}")
        for task, command in enumerate(step.commands):
            record = record_of(run, step, task)
            log = pipeline.folder(run) / "logs" / f"{record.stem}.log"
            if failure := Work(command, str(record), str(log)).run():
                show(f"{step.name:<24} failed (exit {failure}): {last_line(log)}; log: {log}")
                lost.add(step.name)
                break
    return not lost


def status(run: Path, steps: list[Step]) -> None:
    """Print where every step stands."""
    known = jobs(run)
    waiting = queue(known)
    bad: set[str] = set()
    show(f"{run}")
    for step in steps:
        job, word = known.get(step.name), state(run, step)
        queued = waiting.get(job or "")
        text = word
        if word == "done":
            pass
        elif queued:  # whatever it wrote when it ended before
            text = queued if queued != "waits" else f"waits for {', '.join(step.needs)}" if step.needs else "waits"
        elif word == "failed":
            bad.add(step.name)
            text = f"failed: {last_line(log_of(run, step, job))}; log: {log_of(run, step, job)}"
        elif stopped := [need for need in step.needs if need in bad]:
            bad.add(step.name)
            text = f"not run: {', '.join(stopped)} failed"
        elif job:
            bad.add(step.name)
            text = f"ended without a record (killed or cancelled); log: {log_of(run, step, job)}"
        else:
            text = "not submitted"
        show(f"  {step.name:<24} {'job ' + job if job else '':<12} {text}{progress(run, step, word)}")


def progress(run: Path, step: Step, word: str) -> str:
    """Return how far a stage or an array has come, by what it wrote."""
    if step.kind == "pretrain" and word != "done":
        found = sorted(path.name for path in (run / step.name).glob("[0-9]" * 8))
        return f", last checkpoint at step {int(found[-1])}" if found else ""
    if len(step.commands) > 1:
        done = sum(recorded(run, step, task).get("state") == "done" for task in range(len(step.commands)))
        return f", {done} of {len(step.commands)} parts"
    return ""


def jobs(run: Path) -> dict[str, str]:
    """Return step → job id of the last submission."""
    return read(pipeline.folder(run) / "jobs.json", {...: str})


def queue(known: dict[str, str]) -> dict[str, str]:
    """Return job id → `runs`, `waits` (for another job) or SLURM's word, for the jobs that are in its queue."""
    if not known or shutil.which("squeue") is None:
        return {}
    asked = ["squeue", "-h", "-o", "%F|%T|%r", "-j", ",".join(known.values())]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:  # SLURM has forgotten one of them: ask for all, keep ours
        done = subprocess.run(["squeue", "-h", "-o", "%F|%T|%r"], capture_output=True, text=True)
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        job, word, reason = line.split("|", 2)
        if job in known.values():
            pending = "waits" if reason.startswith("Dependency") else f"in the queue ({reason})"
            text = {"RUNNING": "runs", "COMPLETING": "runs", "PENDING": pending}.get(word, word.lower())
            found[job] = "runs" if found.get(job) == "runs" else text
    return found


def log_of(run: Path, step: Step, job: str | None) -> Path:
    """Return the log of a step; for an array, that of its first task that failed."""
    logs = pipeline.folder(run) / "logs"
    if job is None:
        return logs / f"{record_of(run, step).stem}.log"
    task = next((n for n in range(len(step.commands)) if recorded(run, step, n).get("state") == "failed"), 0)
    name = f"{job}_{task}" if len(step.commands) > 1 else job
    found = sorted(logs.glob(f"*/{name}_0_log.out"))
    return found[0] if found else logs / name / f"{name}_0_log.out"


def last_line(log: Path) -> str:
    """Return the last line of a log that starts with "error:", else its last one."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    lines = [line for line in lines if line.strip() and not line.startswith("submitit ")]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no log"])[-1]


def check_folder(paths: Sequence[str]) -> None:
    """Raise PipelineError for a relative path where the working directory is not the one that all steps run in."""
    relative = [path for path in paths if not Path(path).is_absolute()]
    if relative and not Path.cwd().samefile(pipeline.ROOT):
        raise PipelineError(f"{relative[0]}: all steps run in {pipeline.ROOT}; start there, or give absolute paths")


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Submit, run or show the pipeline of a configuration; return the exit status."""
    options = console.parser(
        "Shards, stages, probes and report as jobs that depend on each other.",
        "A step that fails stops what depends on it. Submitted again, what is done is left out.",
    )
    options.add_argument("config", metavar="CONFIG", help="a configuration of pretraining, see pretrain/configs/")
    options.add_argument("--cluster", metavar="NAME", help="a name in slurm/clusters/, or a YAML file")
    options.add_argument(
        "--shard", metavar="ARGS", default="", help='make the shards first: "ct 64 --input DIR", as slurm/shard.sh'
    )
    options.add_argument("--task", metavar="FILE", action="append", default=[], help="a probe before and after")
    options.add_argument("--status", action="store_true", help="show where the pipeline stands")
    options.add_argument("--local", action="store_true", help="run the pipeline here, one step after the other")
    options.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.root=shards output=/scratch/runs")
    given = options.parse_intermixed_args(arguments)
    config = load(given.config, given.overrides)
    for stage in config.stages:
        checks.stage(config, stage)
    run = Path(config.output) / config.name
    with disk_errors(run):
        return _pipeline(given, config, run)


def _pipeline(given: argparse.Namespace, config: Config, run: Path) -> int:
    shard = _split(given.shard)
    asked = {"config": given.config, "overrides": given.overrides, "tasks": given.task, "shard": shard}
    if given.status:
        asked = pipeline.asked_before(run) or asked
    else:
        here = [word for word in shard[2:] if Path(word).exists()]
        roots = [source.root for source in sources_of(config.data).values()]
        check_folder([given.config, config.output, *roots, *given.task, *here])
        pipeline.ask(run, asked)
    steps = pipeline.steps(run=str(run), data=config.data.root, stages=list(config.stages), **asked)
    if given.status:
        status(run, steps)
        return 0
    if given.local:
        return 0 if local(run, steps) else 1
    if given.cluster is None:
        raise PipelineError("name a cluster with --cluster, or run the pipeline here with --local")
    submit(run, steps, clusters.load(given.cluster))
    return 0


def _split(arguments: str) -> list[str]:
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise PipelineError(f"--shard {arguments!r}: {error}") from error


if __name__ == "__main__":
    console.launch(main)
