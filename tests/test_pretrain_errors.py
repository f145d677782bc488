"""What ends a training, or stands in its way, is one line: Ctrl-C, damaged files of a run, errors of several ranks."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.processes import said
from helpers.processes import train as train_in_processes
from helpers.tiny_run import CONFIG, rows, weights

from meddap.settings import SettingsError
from pretrain import export, runs, stage, train
from pretrain.runtime import checkpoint, distributed, metrics
from pretrain.runtime.preemption import Stop

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """A finished run of the tiny configuration's first stage, and the command that made it."""

    root: Path
    command: list[str]

    @property
    def stage(self) -> Path:
        return self.root / "tiny" / "adapt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained once for all tests; to be copied."""
    from helpers.datasets import write_dataset

    root = tmp_path_factory.mktemp("finished")
    data = write_dataset(root / "data", {"train": 4, "val": 2, "test": 2})
    (root / "tiny.yaml").write_text(CONFIG)
    command = ["--config", str(root / "tiny.yaml"), f"data.root={data}", "--stage", "adapt"]
    assert train.main([*command, f"output={root}"]) == 0
    return Run(root, command)


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy of the run that may be damaged."""
    shutil.copytree(finished.root / "tiny", tmp_path / "tiny")
    return Run(tmp_path, [*finished.command, f"output={tmp_path}"])


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def in_the_middle(path: Path) -> None:
    """Overwrite a file's third line with zeros, as a disk does that lost a block."""
    lines = path.read_bytes().split(b"\n")
    lines[2] = bytes(len(lines[2]))
    path.write_bytes(b"\n".join(lines))


def instead(text: str) -> Callable[[Path], None]:
    """Write something else in place of a file or folder."""

    def damage(path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        path.write_text(text)

    return damage


def one_error(text: str) -> str:
    """The one line of an error in what a command wrote."""
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


STEP = "adapt/00000008"


@pytest.mark.parametrize(
    ("file", "damage", "expected"),
    [
        (f"{STEP}/state.json", cut, "00000008: no checkpoint there (state.json: JSONDecodeError)"),
        (f"{STEP}/state.json", instead("\x00"), "00000008: no checkpoint there (state.json: JSONDecodeError)"),
        (f"{STEP}/state.json", instead("[]"), "00000008: no checkpoint there (state.json holds a list)"),
        (f"{STEP}/state.json", instead('{"version": 2}'), "state.json has no usable 'step'; take another checkpoint"),
        (f"{STEP}/config.yaml", instead("a: ["), "00000008/config.yaml: "),
        (f"{STEP}/config.yaml", instead("name: x\n"), "config.yaml: stages is required"),
        (f"{STEP}/teacher.safetensors", cut, "teacher.safetensors: damaged, its SHA-256 is not the recorded one"),
        (f"{STEP}/teacher.safetensors", Path.unlink, "teacher.safetensors: missing from its checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(
    file: str, damage: Callable[[Path], None], expected: str, run: Run, capsys: pytest.CaptureFixture
) -> None:
    """Exporting the step folder says which file, and what is wrong with it."""
    damage(run.root / "tiny" / file)
    words = ["--format", "dinov3", "--output", str(run.root / "out.pth")]
    assert export.main(["--checkpoint", str(run.root / "tiny" / STEP), *words]) == 1
    assert expected in one_error(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("file", "damage", "expected"),
    [
        ("adapt/metrics.jsonl", in_the_middle, "metrics.jsonl: line 3 is not a row of metrics; delete the line"),
        ("adapt/metrics.jsonl", instead("[1]\n"), "metrics.jsonl: line 1 is not a row of metrics; delete the line"),
        ("adapt/tensorboard", instead(""), "set machine.tensorboard=false"),
        ("code", instead(""), "code"),
    ],
)
def test_a_damaged_run_is_one_line(
    file: str, damage: Callable[[Path], None], expected: str, run: Run, capsys: pytest.CaptureFixture
) -> None:
    """A run that goes on says which of its files is in the way."""
    for path in checkpoint.steps(run.stage)[1:]:
        shutil.rmtree(path)
    damage(run.root / "tiny" / file)
    assert train.main([*run.command, "machine.tensorboard=true"]) == 1
    assert expected in one_error(capsys.readouterr().err)


@pytest.mark.parametrize("damage", [cut, instead("[]"), instead('{"version": 2, "step": "8"}')])
def test_a_damaged_state_is_passed_over(damage: Callable[[Path], None], run: Run, finished: Run, caplog) -> None:
    """The run goes on from the checkpoint before, and ends the same."""
    damage(run.stage / "00000008" / "state.json")
    assert train.main(run.command) == 0
    assert "taking the checkpoint before it" in caplog.text
    assert_same(run, finished)


def test_a_half_written_row_is_written_anew(run: Run, finished: Run) -> None:
    """What a kill leaves of the last line of metrics.jsonl is dropped; the rows are those of the whole run."""
    shutil.rmtree(run.stage / "00000008")
    path = run.stage / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert [row["step"] for row in metrics.read(path)] == list(range(7))
    assert train.main(run.command) == 0
    assert_same(run, finished)


def assert_same(run: Run, other: Run) -> None:
    """Both have the same rows, and the same bits in their last checkpoint."""
    assert rows(run.stage) == rows(other.stage)
    ours, theirs = (weights(each.stage / "00000008") for each in (run, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_ctrl_c_saves_and_a_second_start_goes_on(finished: Run, tmp_path: Path) -> None:
    """SIGINT to a real process: one line, status 130; the run that goes on is the one that was never stopped."""
    long = [*finished.command, "stages.adapt.steps=60", "save.every=100"]
    command = [sys.executable, "-m", "pretrain.train", *long, f"output={tmp_path}", "name=tiny"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    path, until = tmp_path / "tiny" / "adapt" / "metrics.jsonl", time.monotonic() + 120
    while len(metrics.read(path)) < 3:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "Traceback" not in text, text
    last = checkpoint.newest(path.parent).step
    assert last >= 3 and text.splitlines()[-1] == f"SIGINT: stage adapt, step {last} of 60, saved; start again to go on"
    assert train.main([*long, f"output={tmp_path}"]) == 0
    assert train.main([*long, f"output={tmp_path / 'whole'}"]) == 0
    assert rows(path.parent) == rows(tmp_path / "whole" / "tiny" / "adapt") and len(rows(path.parent)) == 60


def test_ctrl_c_saves_although_nobody_reads_any_more(finished: Run, tmp_path: Path) -> None:
    """`… 2>&1 | tee LOG`: the same Ctrl-C ends tee first, and the checkpoint of the step is still written."""
    command = [sys.executable, "-m", "pretrain.train", *finished.command, "stages.adapt.steps=60", "save.every=100"]
    command += [f"output={tmp_path}", "name=tiny", "machine.log_every=1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    path, until = tmp_path / "tiny" / "adapt" / "metrics.jsonl", time.monotonic() + 120
    while len(metrics.read(path)) < 3:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.stdout.close()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert checkpoint.newest(path.parent).step == len(metrics.read(path)) >= 3


def test_a_second_ctrl_c_does_not_wait(capfd: pytest.CaptureFixture) -> None:
    """Of a process that runs alone. With others a launcher may send several, and all wait for the step's end."""
    with Stop(alone=True) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.stop_signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert capfd.readouterr().err.strip().startswith("stopping after this step; Ctrl-C again stops at once")
    with Stop() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.stop_signal == signal.SIGINT


@dataclass
class Spoil:
    """Makes some ranks fail in a way that nobody foresaw, in their third step."""

    ranks: tuple[int, ...]

    def __call__(self) -> None:
        before = stage.run_step

        def spoiled(found: stage.Stage, step: int, batch: object) -> dict[str, torch.Tensor]:
            if step == 2 and found.world.rank in self.ranks:
                raise TypeError("not foreseen")
            return before(found, step, batch)

        stage.run_step = spoiled


@pytest.mark.parametrize("ranks", [(0, 1), (1,), (0,)])
def test_an_error_that_nobody_foresaw_has_one_traceback(ranks: tuple[int, ...], finished: Run, tmp_path: Path) -> None:
    """Of all ranks or of one, under the line that says where to report it."""
    arguments = [*finished.command, f"output={tmp_path}"]
    assert all(train_in_processes(arguments, 2, tmp_path / "logs", Spoil(ranks))), said(tmp_path / "logs")
    text = said(tmp_path / "logs")
    assert (
        text.count("Traceback (most recent call last)") == 1
        and len(re.findall("^TypeError: not foreseen", text, re.MULTILINE)) == 1
    ), text
    assert text.count("unexpected TypeError in meddap") == 1, text


def test_a_port_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process cannot listen where another program does."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        names = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SettingsError, match=f"MASTER_PORT={port}: another process listens there"):
            distributed.start(torch.device("cpu"), 1.0)


def test_the_kept_code_is_all_of_it(run: Run) -> None:
    """Every package with its folders, configurations and scripts: each module that a start imports."""
    (archive,) = (run.root / "tiny" / "code").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        kept = set(tar.getnames())
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("data_prep", "eval", "meddap", "pretrain", "slurm")
        for path in (ROOT / package).rglob("*.py")
    }
    assert wanted <= kept and {"setup.cfg", "meddap/page.html", "slurm/pretrain.sh"} <= kept
    assert any(name.startswith("pretrain/configs/") for name in kept)
    assert archive.name == f"{runs.code_digest(runs.code_files())}.tar.gz"
