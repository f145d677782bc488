"""The batch scripts do what the commands do, with SLURM and without."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.slurm_jobs import queued, slurm_or_skip, text, until

from data_prep import generate, schema

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "slurm" / "pretrain.sh"
SHARD = ROOT / "slurm" / "shard.sh"
PROBE = ROOT / "slurm" / "probe.sh"
CONFIG = """
name: tiny
model: {patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}
dino_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
ibot_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
stages: {adapt: {steps: 2, batch_size: 8, crops: {global_size: 32, local_size: 16, local_number: 1}}}
machine: {device: cpu, tensorboard: false}
"""


@pytest.fixture
def words(tiny_dataset, tmp_path: Path) -> list[str]:
    """Arguments of the script for a run of two steps."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    return [str(tmp_path / "config.yaml"), f"output={tmp_path}", f"data.root={tiny_dataset()}"]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script uses the Python of the tests."""
    monkeypatch.setenv("MEDDAP_PYTHON", sys.executable)


def test_without_slurm_bash_runs_the_training(words: list[str], tmp_path: Path, monkeypatch) -> None:
    """bash slurm/pretrain.sh from any folder trains, on several processes by torchrun; the exit status is passed on."""
    with monkeypatch.context() as several:
        several.setenv("MEDDAP_PROCESSES", "2")
        done = subprocess.run(["bash", str(SCRIPT), *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "tiny" / "adapt" / "00000002" / "state.json").read_text())["processes"] == 2
    failed = subprocess.run(["bash", str(SCRIPT), words[0], "sede=1"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1 and "did you mean seed?" in failed.stderr


@pytest.mark.parametrize("script", [SCRIPT, PROBE])
def test_the_script_says_how_it_is_used(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No arguments: usage and a failure; --help: usage and success; no Python or a wrong folder: one line."""
    assert subprocess.run(["bash", str(script)], capture_output=True).returncode == 1
    assert b"usage: sbatch" in subprocess.run(["bash", str(script), "--help"], capture_output=True, check=True).stdout
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(tmp_path))
    lost = subprocess.run(["bash", str(script), "x.yaml"], capture_output=True, text=True)
    assert lost.returncode == 1 and "submit from there" in lost.stderr
    monkeypatch.delenv("SLURM_SUBMIT_DIR")
    monkeypatch.setenv("MEDDAP_PYTHON", "/nowhere/python")
    assert "run 'make setup'" in subprocess.run(["bash", str(script), "x.yaml"], capture_output=True, text=True).stderr


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five synthetic patients."""
    config = generate.GenerateConfig(patients=5, slices=4, size=32, odd=False)
    generate.generate(tmp_path / "in", config)
    return tmp_path / "in"


def test_without_slurm_the_parts_run_one_after_the_other(images: Path, tmp_path: Path, monkeypatch) -> None:
    """bash slurm/shard.sh makes the parts and merges them; a part that fails ends it with its exit status."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "date", "seq"):  # a machine without sbatch
        (tools / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(tools))
    words = ["--input", str(images), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [str(tools / "bash"), str(SHARD), "ct", "2", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    splits = schema.read_dataset(tmp_path / "out")["splits"]
    assert sum(part["samples"] for part in splits.values()) == 20
    failed = subprocess.run([str(tools / "bash"), str(SHARD), "ct", "2", *words, "min_slcies=1"], capture_output=True)
    assert failed.returncode == 1 and b"did you mean min_slices?" in failed.stderr


@pytest.mark.parametrize("words", [["pet", "2"], ["ct"], ["ct", "0", "--output", "x"], ["ct", "two"], ["mri", "2"]])
def test_the_shard_script_refuses_what_it_does_not_know(words: list[str]) -> None:
    """Another modality, no number of parts, no output: one line with the usage."""
    done = subprocess.run(["bash", str(SHARD), *words], capture_output=True, text=True)
    assert done.returncode == 1 and "usage: sbatch slurm/shard.sh ct|mri|images PARTS" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_sbatch_shards_in_an_array_and_merges(images: Path, tmp_path: Path) -> None:
    """sbatch slurm/shard.sh submits an array of parts and a merge after it; skips where no SLURM runs."""
    slurm_or_skip()
    log, words = tmp_path / "job.log", ["--input", str(images), "--output", str(tmp_path / "out")]
    command = ["sbatch", "--parsable", f"--output={log}", "--cpus-per-task=1", str(SHARD), "ct", "3", *words]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    until(lambda: not queued(first), 120, lambda: text(log))
    numbers = re.search(r"parts: job (\d+), .*; merge: job (\d+)", log.read_text())
    assert numbers, log.read_text()
    until(lambda: not queued(numbers[1], numbers[2]), 120, lambda: text(log))
    logs = [ROOT / f"meddap-shard-{numbers[1]}-{part}.log" for part in (1, 2, 3)] + [
        ROOT / f"meddap-merge-{numbers[2]}.log"
    ]
    said = text(*logs)
    for each in logs:
        each.unlink()
    splits = schema.read_dataset(tmp_path / "out")["splits"]
    assert sum(part["samples"] for part in splits.values()) == 20, said
    assert len(list((tmp_path / "out").glob("part-*"))) == 3 and "part 3 of 3" in said
