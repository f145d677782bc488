"""On a real SLURM: two nodes, signals, requeues, a node that dies, the pipeline as jobs that wait for each other."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.slurm_jobs import ROOT, cancel, kill_node, queued, revive_node, slurm_or_skip, text, until
from helpers.tiny_run import CONFIG, rows

from data_prep import generate
from pretrain import train
from pretrain.runtime import metrics
from slurm import pipeline as pipelines
from slurm import submit

STAGES = CONFIG.replace("adapt: {steps: 8}", "adapt: {steps: 90}").replace("save: {every: 3}", "save: {every: 10}")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs use the Python and the code of the tests."""
    monkeypatch.setenv("MEDDAP_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def jobs():
    """Job ids that end with the test, whatever it does."""
    found: list[str] = []
    yield found
    if found:
        cancel(*found)


def test_a_job_on_two_nodes_survives_signals_requeues_and_a_dead_node(
    tiny_dataset, tmp_path: Path, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """scancel --signal=USR1, scontrol requeue, a killed slurmd: the numbers of a run that nobody disturbed.

    The job goes on by itself each time, from the step that it had saved or from its last checkpoint.
    """
    slurm_or_skip(nodes=2)
    (tmp_path / "run.yaml").write_text(STAGES)
    overrides = [f"output={tmp_path}", f"data.root={tiny_dataset()}", "--stage", "adapt"]
    log, path = tmp_path / "job.log", tmp_path / "job" / "adapt" / "metrics.jsonl"
    command = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={log}"]
    command += ["slurm/pretrain.sh", str(tmp_path / "run.yaml"), "name=job", *overrides]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    jobs.append(job)

    def reaches(step: int) -> None:
        until(lambda: metrics.read(path)[-1:] and metrics.read(path)[-1]["step"] >= step, 120, lambda: text(log))

    def starts(times: int) -> None:
        until(lambda: f": start {times}: " in text(log), 120, lambda: text(log))

    reaches(4)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    starts(2)
    assert "SIGUSR1: stage adapt, step " in text(log) and "asked to stop; back to the queue" in text(log)
    saved = int(text(log).split("SIGUSR1: stage adapt, step ")[1].split()[0])
    assert not (tmp_path / "job" / "adapt" / "00000010").exists() or saved >= 10
    reaches(saved + 12)
    subprocess.run(["scontrol", "requeue", job], check=True)
    starts(3)
    until(lambda: "steps " in text(log).split(": start 3: ")[1], 60, lambda: text(log))
    reaches(metrics.read(path)[-1]["step"] + 12)
    kill_node("node2", job)
    try:
        until(lambda: "PD" in queued(job) or ": start 4: " in text(log), 120, lambda: text(log))
    finally:
        revive_node("node2")
    until(lambda: not queued(job), 180, lambda: text(log))
    assert (tmp_path / "job" / "adapt" / "00000090" / "state.json").is_file(), text(log)
    assert "2 processes (ddp)" in text(log) and "Traceback" not in text(log)
    assert not list(ROOT.glob(".meddap-progress-*"))
    assert train.main(["--config", str(tmp_path / "run.yaml"), "name=calm", *overrides]) == 0
    for ours, theirs in zip(rows(tmp_path / "job" / "adapt"), rows(tmp_path / "calm" / "adapt"), strict=True):
        assert ours["samples"] == theirs["samples"]
        assert math.isclose(ours["loss/total"], theirs["loss/total"], rel_tol=1e-3), (ours, theirs)


PIPELINE = """
name: run
intensity: {window: [-300, 500]}
model: {patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}
dino_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
ibot_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
stage_defaults: {batch_size: 8, crops: {global_size: 32, local_size: 16, local_number: 1}}
stages:
  adapt: {steps: 2}
  second: {steps: 2}
machine: {device: cpu, tensorboard: false}
"""
TASK = """
{name: organs, organs: {lung: 1, spine: 8}, min_pixels: 1, size: 32, probes: [knn], draws: 20, pictures: 0,
 stride: {train: 1, val: 1, test: 1}}
"""


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """pipeline(*options) submits a small pipeline whose second stage needs weights that are not there yet."""
    generate.generate(tmp_path / "in", generate.GenerateConfig(patients=12, slices=6, size=48, odd=False))
    (tmp_path / "run.yaml").write_text(PIPELINE)
    (tmp_path / "task.yaml").write_text(TASK)
    overrides = [f"output={tmp_path}", f"data.root={tmp_path / 'shards'}"]
    overrides.append(f"stages.second.init_from={tmp_path / 'weights'}")
    shard = f"ct 2 --input {tmp_path / 'in'} split.train=0.4 split.val=0.3"
    common = [str(tmp_path / "run.yaml"), *overrides, "--shard", shard, "--task", str(tmp_path / "task.yaml")]
    monkeypatch.chdir(ROOT)
    return lambda *options: submit.main([*common, *options])


ORDER = ["shard", "merge", "adapt", "second", "task-before", "task-after", "report"]


def states(lines: str) -> dict[str, str]:
    """Step → what is said of it."""
    found = (line.split(maxsplit=1) for line in lines.splitlines() if line.strip())
    return {name: rest[0].strip() for name, *rest in found if name in ORDER}


def test_the_pipeline_as_jobs_a_failing_stage_stops_what_needs_it(
    pipeline, tmp_path: Path, jobs: list[str], capsys
) -> None:
    """shards → stages → probes → report with dependencies; a failure is told with its line; again, the rest is done."""
    slurm_or_skip()
    assert pipeline("--cluster", "small") == 0
    said = states(capsys.readouterr().out)
    known = json.loads((tmp_path / "run" / "pipeline" / "jobs.json").read_text())
    jobs += known.values()
    assert list(said) == ORDER and all(f"job {known[name]}" in said[name] for name in ORDER)
    assert "2 parts" in said["shard"] and "after second" in said["task-after"]
    assert pipeline("--cluster", "small") == 1  # they are queued or running
    assert "see --status, or scancel them" in capsys.readouterr().err
    until(lambda: not queued(*jobs), 150, lambda: pipeline("--status") or capsys.readouterr().out)
    assert pipeline("--status") == 0
    said = states(capsys.readouterr().out)
    assert all(said[name].endswith("done") or "done, 2 of 2 parts" in said[name] for name in ORDER[:3]), said
    assert "failed: error: " in said["second"] and "weights: not found" in said["second"], said
    assert said["task-before"].endswith("done") and "not run: second failed" in said["task-after"], said
    assert "not run: task-after failed" in said["report"]

    (tmp_path / "weights").symlink_to(tmp_path / "run" / "adapt")
    assert pipeline("--cluster", "small") == 0
    said = states(capsys.readouterr().out)
    assert all(said[name] == "done before" for name in (*ORDER[:3], "task-before")), said
    jobs += json.loads((tmp_path / "run" / "pipeline" / "jobs.json").read_text()).values()
    until(lambda: not queued(*jobs), 150, lambda: pipeline("--status") or capsys.readouterr().out)
    pipeline("--status")
    said = states(capsys.readouterr().out)
    assert all("done" in said[name] for name in ORDER), said
    assert "knn" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.stress
def test_the_same_pipeline_here(pipeline, tmp_path: Path, capsys) -> None:
    """--local runs the same steps without SLURM, stops what needs a failed one, and goes on when it is mended."""
    assert pipeline("--local") == 1
    said = states(capsys.readouterr().out)
    assert "not run: second failed" in said["task-after"] and "not run: task-after failed" in said["report"], said
    (tmp_path / "weights").symlink_to(tmp_path / "run" / "adapt")
    assert pipeline("--local") == 0
    said = states(capsys.readouterr().out)
    assert said["shard"] == said["adapt"] == "done before" and said["second"].startswith("bash slurm/pretrain.sh")
    assert pipeline("--status") == 0
    assert all(word.startswith("done") for word in states(capsys.readouterr().out).values())


def test_one_stage_and_its_report_here(tiny_dataset, tmp_path: Path, capsys, monkeypatch) -> None:
    """--local without shards and probes: a stage that fails, what needs it, and the same again, mended."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "run.yaml").write_text(PIPELINE.replace("  second: {steps: 2}\n", ""))
    arguments = [str(tmp_path / "run.yaml"), f"output={tmp_path}", f"data.root={tmp_path / 'data'}"]
    assert submit.main([*arguments, "--local"]) == 1
    said = states(capsys.readouterr().out)
    assert said["report"] == "not run: adapt failed" and "no finished data set there" in said["adapt"], said
    tiny_dataset()
    assert submit.main([*arguments, "--local"]) == 0 and submit.main([*arguments, "--status"]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert capsys.readouterr().out.count("done") == 2


@pytest.mark.parametrize(
    "relative", ["run.yaml", "output=runs", "data.root=data", "--task=task.yaml", "--shard=ct 1 --input in"]
)
def test_steps_run_where_their_paths_lead(relative: str, tmp_path: Path, capsys, monkeypatch) -> None:
    """Steps run in the repository's folder: from another one a relative path is refused before anything is begun."""
    (tmp_path / "in").mkdir()
    for name, content in (("run.yaml", PIPELINE), ("task.yaml", TASK)):
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    words = [str(tmp_path / "run.yaml"), f"output={tmp_path / 'out'}", f"data.root={tmp_path / 'data'}", "--local"]
    words = [relative, *words[1:]] if relative == "run.yaml" else [*words, relative]
    before = sorted(tmp_path.rglob("*"))
    assert submit.main(words) == 1
    path = relative.rpartition("=")[2].rpartition(" ")[2]
    assert capsys.readouterr().err == f"error: {path}: all steps run in {ROOT}; start there, or give absolute paths\n"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for a pipeline of one stage and a report, of which both are recorded as done."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "run.yaml").write_text(PIPELINE.replace("  second: {steps: 2}\n", ""))
    arguments = [str(tmp_path / "run.yaml"), f"output={tmp_path}", f"data.root={tmp_path / 'data'}"]
    run = tmp_path / "run"
    made = pipelines.steps(arguments[0], arguments[1:], run=str(run), data=str(tmp_path / "data"), stages=["adapt"])
    for step in made:
        record = {"command": list(step.commands[0]), "state": "done", "status": 0}
        pipelines.write(pipelines.record_of(run, step), record)
    pipelines.ask(run, {"config": arguments[0], "overrides": arguments[1:], "tasks": [], "shard": []})
    return arguments


def test_a_pipeline_of_an_earlier_version_goes_on(finished: list[str], tmp_path: Path, capsys) -> None:
    """Its records are in RUN/road and its overrides are called words: read and continued there, not begun anew."""
    former = (tmp_path / "run" / "pipeline").rename(tmp_path / "run" / "road")
    asked = json.loads((former / "asked.json").read_text())
    asked["words"] = asked.pop("overrides")
    (former / "asked.json").write_text(json.dumps(asked))
    assert submit.main([*finished, "--status"]) == 0
    assert list(states(capsys.readouterr().out).values()) == ["done", "done"]
    assert submit.main([*finished, "--local"]) == 0
    assert list(states(capsys.readouterr().out).values()) == ["done before", "done before"]
    assert not (tmp_path / "run" / "pipeline").exists()


@pytest.mark.parametrize("name", ["asked.json", "jobs.json", "adapt.json"])
@pytest.mark.parametrize(
    "damage", ["", "[1]", '{"config": "run.ya', '{"config": 1}'], ids=["empty", "list", "cut", "key"]
)
def test_a_damaged_record_is_one_line(name: str, damage: str, finished: list[str], tmp_path: Path, capsys) -> None:
    """A file of RUN/pipeline that was cut or is something else: which one, and what to do."""
    path = tmp_path / "run" / "pipeline" / name
    path.write_text(damage)
    assert submit.main([*finished, "--status"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {path}: ") and "delete it" in lines[0]


def test_a_folder_that_cannot_be_written_is_one_line(finished: list[str], tmp_path: Path, capsys) -> None:
    """A file where the folder of records must be: its name, and why."""
    (tmp_path / "file").touch()
    assert submit.main([*finished, "--local", f"output={tmp_path / 'file'}"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "file/run/pipeline" in lines[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--cluster", "nowhere"), "no such cluster; known are example, small, or name a YAML file"),
        ((), "name a cluster with --cluster, or run the pipeline here with --local"),
        (("--local", "--shard", "pet 2"), "expected ct, mri or images, the number of parts"),
        (("--local", "--shard", "ct 2 --output x"), "--output is the configuration's data.root"),
        (("--local", "--shard", 'ct 2 --input "my data'), "No closing quotation"),
        (("--local", "stages.adapt.stpes=2"), "did you mean steps?"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(options: tuple, expected: str, tmp_path: Path, capsys) -> None:
    """An unknown cluster, no cluster, arguments that do not fit, a misspelt key: said before anything is submitted."""
    (tmp_path / "run.yaml").write_text(PIPELINE)
    assert submit.main([str(tmp_path / "run.yaml"), f"output={tmp_path}", "data.root=x", *options]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and expected in errors[0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("echo 'sbatch: error: Invalid generic resource (gres) specification' >&2; exit 1", "Invalid generic resource"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm controller"),
        ("exit 3", "failed without a word"),
    ],
)
def test_what_sbatch_refuses_is_one_line(answer: str, expected: str, tmp_path: Path, capsys, monkeypatch) -> None:
    """sbatch's own reason and where to look, for a cluster file that does not fit and for a SLURM that is down."""
    (tmp_path / "bin").mkdir()
    for name, script in (("sbatch", answer), ("srun", "exit 0"), ("squeue", "exit 0")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    (tmp_path / "run.yaml").write_text(PIPELINE)
    arguments = [str(tmp_path / "run.yaml"), f"output={tmp_path}", f"data.root={tmp_path}", "--cluster", "small"]
    assert submit.main(arguments) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: step adapt: ") and expected in errors[0]
    assert errors[0].endswith("see the cluster file and `sinfo`")


def test_a_cluster_file_becomes_sbatch_options(tmp_path: Path) -> None:
    """Partition, account, GPUs, processes, memory, time, modules, container and environment reach the batch script."""
    from submitit.slurm.slurm import _make_sbatch_string

    from slurm import cluster

    (tmp_path / "mine.yaml").write_text(
        "modules: [cuda/12.8]\ncontainer: apptainer exec --nv m.sif\nenvironment: {NCCL_SOCKET_IFNAME: ib0}\n"
        "defaults: {account: lab, partition: cpu, memory: 32G, hours: 2}\n"
        "pretrain: {partition: gpu, nodes: 2, gpus: 8, cpus: 12, hours: 24, sbatch: {constraint: h100}}\n"
    )
    found = cluster.load(str(tmp_path / "mine.yaml"))
    asked = cluster.executor_parameters(found, "pretrain", "/usr/bin/python")
    script = _make_sbatch_string("command", tmp_path, **asked)
    for line in (
        "#SBATCH --account=lab",
        "#SBATCH --partition=gpu",
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --cpus-per-task=12",
        "#SBATCH --mem=32G",
        "#SBATCH --time=1440",
        "#SBATCH --constraint=h100",
        "#SBATCH --signal=USR1@120",
        "#SBATCH --requeue",
        "module load cuda/12.8",
        "export NCCL_SOCKET_IFNAME='ib0'",
        "export MEDDAP_CONTAINER='apptainer exec --nv m.sif'",
    ):
        assert line in script.splitlines(), script
    probe = cluster.executor_parameters(found, "probe", "/usr/bin/python")
    assert probe["ntasks_per_node"] == 1 and probe["partition"] == "cpu" and "gpus_per_node" not in probe
    (tmp_path / "bad.yaml").write_text("pretrain: {gpsu: 8}\n")
    with pytest.raises(cluster.settings.SettingsError, match="did you mean gpus"):
        cluster.load(str(tmp_path / "bad.yaml"))
