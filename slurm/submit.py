"""The whole road as jobs that wait for each other: shards → stages → probes → report.

    python -m slurm.submit CONFIG --cluster NAME [--shard "ct 64 --input ARCHIVE"] [--task FILE …] [key=value …]
    python -m slurm.submit CONFIG --status [key=value …]        where the road stands
    python -m slurm.submit CONFIG --local  …                    the same steps here, one after the other

A step that fails stops what needs it. Submitted again, what is done is left out. Run it from the repository's folder.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from meddap.settings import SettingsError
from pretrain import config as configuration
from slurm import cluster as clusters
from slurm.pipeline import Step, Work, read, record_of, shown, state, steps, write


class RoadError(RuntimeError):
    """The road cannot be taken; the message says what to do."""


def submit(run: Path, road: list[Step], cluster: clusters.Cluster) -> None:
    """Submit what is not done, each step behind those that it needs, and note the jobs in RUN/road/jobs.json."""
    import submitit  # only where jobs are submitted

    if shutil.which("sbatch") is None:
        raise RoadError("no sbatch here; submit from a login node, or take the road with --local")
    if waiting := queue(jobs(run)):
        raise RoadError(f"{run}: jobs {', '.join(sorted(waiting))} are on their way; see --status, or scancel them")
    found: dict[str, str] = {}
    for step in road:
        if state(run, step) == "done":
            print(f"{step.name:<24} done before")
            continue
        executor = submitit.SlurmExecutor(folder=run / "road" / "logs" / "%j", python=shlex.quote(sys.executable))
        asked = clusters.executor_parameters(cluster, step.kind, sys.executable)
        extra = asked["additional_parameters"]
        if before := [found[need] for need in step.needs if need in found]:
            extra |= {"dependency": "afterok:" + ":".join(before), "kill-on-invalid-dep": "yes"}
        executor.update_parameters(job_name=f"{run.name}-{step.name}", **asked)
        works = []
        for part, command in enumerate(step.commands):
            record = record_of(run, step, part)
            record.unlink(missing_ok=True)
            works.append(Work(command, str(record.resolve())))
        if len(works) == 1:
            found[step.name] = executor.submit(works[0]).job_id
        else:
            found[step.name] = executor.map_array(lambda work: work(), works)[0].job_id.partition("_")[0]
        write(run / "road" / "jobs.json", {**jobs(run), **found})
        after = f", after {', '.join(step.needs)}" if before else ""
        count = f", {len(works)} parts" if len(works) > 1 else ""
        print(f"{step.name:<24} job {found[step.name]}{count}{after}")
    print(f"logs below {run / 'road' / 'logs'}; python -m slurm.submit … --status shows where they stand")


def local(run: Path, road: list[Step]) -> bool:
    """Take the road here; whether it came to its end."""
    lost: set[str] = set()
    for step in road:
        if missing := [need for need in step.needs if need in lost]:
            print(f"{step.name:<24} not run: {', '.join(missing)} failed")
            lost.add(step.name)
            continue
        if state(run, step) == "done":
            print(f"{step.name:<24} done before")
            continue
        print(f"{step.name:<24} {shown(step.commands[0])}", flush=True)
        for part, command in enumerate(step.commands):
            log = run / "road" / "logs" / f"{record_of(run, step, part).stem}.log"
            if number := Work(command, str(record_of(run, step, part)), str(log)).run():
                print(f"{step.name:<24} failed (exit {number}): {last_line(log)}; log: {log}")
                lost.add(step.name)
                break
    return not lost


def status(run: Path, road: list[Step]) -> bool:
    """Print where every step stands; whether all are done."""
    known = jobs(run)
    waiting = queue(known)
    bad: set[str] = set()
    print(f"{run}")
    good = True
    for step in road:
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
            text = f"ended without a word (killed or cancelled); log: {log_of(run, step, job)}"
        else:
            text = "not submitted"
        good &= word == "done"
        print(f"  {step.name:<24} {'job ' + job if job else '':<12} {text}{progress(run, step, word)}")
    return good


def progress(run: Path, step: Step, word: str) -> str:
    """How far a stage or an array has come, by what it wrote."""
    if step.kind == "pretrain" and word != "done":
        found = sorted(path.name for path in (run / step.name).glob("[0-9]" * 8))
        return f", last checkpoint at step {int(found[-1])}" if found else ""
    if len(step.commands) > 1:
        done = sum(read(record_of(run, step, part)).get("state") == "done" for part in range(len(step.commands)))
        return f", {done} of {len(step.commands)} parts"
    return ""


def jobs(run: Path) -> dict[str, str]:
    """Step → job id of the last submission."""
    return read(run / "road" / "jobs.json")


def queue(known: dict[str, str]) -> dict[str, str]:
    """Job id → `runs`, `waits` (for another job) or SLURM's word, of the jobs that are in its queue."""
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
    """The log of a step, of its first part that failed where it is an array."""
    logs = run / "road" / "logs"
    if job is None:
        return logs / f"{record_of(run, step).stem}.log"
    part = next((n for n in range(len(step.commands)) if read(record_of(run, step, n)).get("state") == "failed"), 0)
    name = f"{job}_{part}" if len(step.commands) > 1 else job
    found = sorted(logs.glob(f"*/{name}_0_log.out"))
    return found[0] if found else logs / name / f"{name}_0_log.out"


def last_line(log: Path) -> str:
    """The last line of a log that the program wrote as an error, else its last one."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    lines = [line for line in lines if line.strip() and not line.startswith("submitit ")]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no log"])[-1]


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m slurm.submit",
        description="Shards, stages, probes and report as jobs that wait for each other.",
        epilog="A step that fails stops what needs it. Submitted again, what is done is left out.",
    )
    parser.add_argument("config", metavar="CONFIG", help="a configuration of pretraining, see pretrain/configs/")
    parser.add_argument("--cluster", metavar="NAME", help="of slurm/clusters/, or a YAML file")
    parser.add_argument(
        "--shard", metavar="WORDS", default="", help='make the shards first: "ct 64 --input DIR", as slurm/shard.sh'
    )
    parser.add_argument("--task", metavar="FILE", action="append", default=[], help="a probe before and after")
    parser.add_argument("--status", action="store_true", help="show where the road stands")
    parser.add_argument("--local", action="store_true", help="take the road here, one step after the other")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.root=shards output=/scratch/runs")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = configuration.load(options.config, options.overrides)
        for stage in config.stages:
            configuration.stage(config, stage)
        run = Path(config.output) / config.name
        asked = {"config": options.config, "words": options.overrides, "tasks": options.task}
        asked["shard"] = shlex.split(options.shard)
        if options.status:
            asked = read(run / "road" / "asked.json") or asked
        else:
            write(run / "road" / "asked.json", asked)
        road = steps(run=str(run), data=config.data.root, stages=list(config.stages), **asked)
        if options.status:
            status(run, road)
            return 0
        if options.local:
            return 0 if local(run, road) else 1
        if options.cluster is None:
            raise RoadError("name a cluster with --cluster, or take the road here with --local")
        submit(run, road, clusters.load(options.cluster))
    except (SettingsError, RoadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"error: sbatch: {(error.stderr or error.output or str(error)).strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
