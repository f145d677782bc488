"""The batch script does what the command does, with SLURM and without."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "slurm" / "pretrain.sh"
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


def test_without_slurm_bash_runs_the_training(words: list[str], tmp_path: Path) -> None:
    """bash slurm/pretrain.sh from any folder trains, and passes the command's exit status on."""
    done = subprocess.run(["bash", str(SCRIPT), *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny" / "adapt" / "00000002" / "state.json").is_file()
    failed = subprocess.run(["bash", str(SCRIPT), words[0], "sede=1"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1 and "did you mean seed?" in failed.stderr


def test_the_script_says_how_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No arguments: usage and a failure; --help: usage and success; no Python or a wrong folder: one line."""
    assert subprocess.run(["bash", str(SCRIPT)], capture_output=True).returncode == 1
    assert b"usage: sbatch" in subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, check=True).stdout
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(tmp_path))
    lost = subprocess.run(["bash", str(SCRIPT), "x.yaml"], capture_output=True, text=True)
    assert lost.returncode == 1 and "submit from there" in lost.stderr
    monkeypatch.delenv("SLURM_SUBMIT_DIR")
    monkeypatch.setenv("MEDDAP_PYTHON", "/nowhere/python")
    assert "run 'make setup'" in subprocess.run(["bash", str(SCRIPT), "x.yaml"], capture_output=True, text=True).stderr


def test_sbatch_trains_on_a_node(words: list[str], tmp_path: Path) -> None:
    """A job on a real SLURM trains to the end and writes its log; skips where none runs."""
    if shutil.which("sbatch") is None or subprocess.run(["sinfo", "-h"], capture_output=True).returncode:
        pytest.skip("needs a running SLURM: none answers here")
    log = tmp_path / "job.log"
    command = ["sbatch", "--parsable", f"--output={log}", "--cpus-per-task=1", str(SCRIPT), *words]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    deadline = time.monotonic() + 120
    while subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True).stdout.strip():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "the job never started"
        time.sleep(0.5)
    assert (tmp_path / "tiny" / "adapt" / "00000002" / "state.json").is_file(), log.read_text()
    assert f"job {job} on" in log.read_text()
