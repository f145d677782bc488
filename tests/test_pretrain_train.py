"""Whole runs of a tiny model: resumed equals not stopped, bad numbers stop it, errors are one line."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import CONFIG, rows, stop_after_every_step, weights
from safetensors.torch import load_file

from meddap import disk
from pretrain import distillation, train
from pretrain.runtime import checkpoint
from pretrain.weights import encoder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(tiny_dataset, tmp_path: Path):
    """run(name, *words) trains the tiny configuration and returns the exit status."""
    data, config = tiny_dataset(), tmp_path / "tiny.yaml"
    config.write_text(CONFIG)

    def start(name: str, *words: str) -> int:
        return train.main(["--config", str(config), f"name={name}", f"output={tmp_path}", f"data.root={data}", *words])

    start.config, start.data = config, data
    return start


def assert_same_run(one: Path, other: Path) -> None:
    """Both runs have the same metrics and the same bits in every tensor of their last checkpoints."""
    for stage, last in (("adapt", "00000008"), ("second", "00000003")):
        assert rows(one / stage) == rows(other / stage) and len(rows(one / stage)) == int(last)
        ours, theirs = weights(one / stage / last), weights(other / stage / last)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_two_runs_are_the_same_bits(run, tmp_path: Path) -> None:
    """Same seed: the same metrics and weights. Another seed: others."""
    assert run("a") == 0 and run("b") == 0 and run("c", "seed=1") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert rows(tmp_path / "a" / "adapt") != rows(tmp_path / "c" / "adapt")


def test_stopped_at_every_step_and_resumed_is_the_run_that_was_not_stopped(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after any step, between checkpoints too; the resumed run ends with the same bits."""
    assert run("whole") == 0
    assert stop_after_every_step(lambda: run("stopped"), monkeypatch) == 11
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.stress)])
def test_killed_at_random_moments_it_ends_the_same(kills: int, run, tmp_path: Path) -> None:
    """kill -9 of the process at random times, started again until it ends by itself."""
    assert run("whole") == 0
    command = [
        sys.executable,
        "-m",
        "pretrain.train",
        "--config",
        str(run.config),
        "name=killed",
        f"output={tmp_path}",
        f"data.root={run.data}",
    ]
    draws = random.Random(1)
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline, folder = time.monotonic() + 60, tmp_path / "killed" / "adapt"
        while not (folder / "00000000").is_dir() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(draws.uniform(0, 0.6))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_stage_is_not_run_again_and_the_next_starts_from_it(run, tmp_path: Path, capsys) -> None:
    """The second stage's first checkpoint holds the first stage's last weights; a second start trains nothing."""
    assert run("a") == 0
    first, start = (
        load_file(tmp_path / "a" / place / "teacher.safetensors") for place in ("adapt/00000008", "second/00000000")
    )
    assert all(torch.equal(first[key], start[key]) for key in first)
    before = (tmp_path / "a" / "adapt" / "metrics.jsonl").stat().st_mtime_ns
    assert run("a") == 0
    assert (tmp_path / "a" / "adapt" / "metrics.jsonl").stat().st_mtime_ns == before
    assert run("b", "--stage", "second") == 1
    assert "stage adapt has not begun; run it first" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(run, tmp_path: Path, monkeypatch, capsys) -> None:
    """The error names stage, step and term; the weights on the disk are those of the last good checkpoint."""
    real = distillation.losses

    def spoiled(*arguments, **options):
        found = real(*arguments, **options)
        spoiled.calls += 1
        if spoiled.calls == 5:
            found["ibot"] = found["ibot"] * float("nan")
        return found

    spoiled.calls = 0
    monkeypatch.setattr(distillation, "losses", spoiled)
    assert run("a") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: stage adapt, step 4: loss/ibot is nan; the last checkpoint is kept")
    assert checkpoint.newest(tmp_path / "a" / "adapt").step == 3
    monkeypatch.setattr(distillation, "losses", real)
    assert run("a") == 0 and run("whole") == 0
    assert_same_run(tmp_path / "a", tmp_path / "whole")


def test_a_damaged_newest_checkpoint_is_passed_over(run, tmp_path: Path, caplog) -> None:
    """One flipped byte: a warning, the checkpoint before it, and the same end."""
    assert run("a", "stages.adapt.steps=8", "--stage", "adapt") == 0
    path = tmp_path / "a" / "adapt" / "00000008" / "teacher.safetensors"
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    assert run("a") == 0 and run("whole") == 0
    assert "damaged" in caplog.text and "taking the checkpoint before it" in caplog.text
    assert_same_run(tmp_path / "a", tmp_path / "whole")


def test_errors_are_one_line(run, tmp_path: Path, capsys) -> None:
    """Misspelt keys anywhere, missing data, another recipe or data on resumption: one line, exit status 1."""
    assert run("a", "--stage", "adapt") == 0
    capsys.readouterr()
    (tmp_path / "list.yaml").write_text("- a\n")
    cases = [
        (("b", "modle.depth=2"), "did you mean model?"),
        (("b", "model.dept=2"), "did you mean model.depth?"),
        (("b", "stages.adapt.optim.lr.peek=1"), "unknown key optim.lr.peek; did you mean optim.lr.peak?"),
        (("b", "stages.adapt.steps=few"), "few"),
        (("b", "data.root=/nowhere"), "no finished data set there"),
        (("b", "data.split=tset"), "no split 'tset'"),
        (("b", "machine.device=gpu9"), "machine.device"),
        (("b", "model.num_heads=5"), "model: embed_dim 32 is not a multiple of num_heads 5"),
        (("b", "stages.second.crops.local_size=20"), "local_size=20: not a multiple of model.patch_size=8"),
        (("b", "--stage", "third"), "no such stage, the configuration has adapt, second"),
        (("a", "stages.adapt.optim.lr.peak=1"), "stages.adapt.optim.lr.peak was 0.001 when this run began, now 1.0"),
    ]
    for words, expected in cases:
        assert run(*words) == 1, words
        errors = [line for line in capsys.readouterr().err.splitlines() if line]
        assert errors[-1].startswith("error: ") and expected in errors[-1], errors
        assert not any("Traceback" in line for line in errors)
    dataset = json.loads((run.data / "dataset.json").read_text())
    (run.data / "dataset.json").write_text(json.dumps({**dataset, "digest": "0" * 64}))
    assert run("a", "--stage", "adapt") == 1
    assert "the shards changed since this run began" in capsys.readouterr().err


def test_a_run_of_a_version_with_fewer_settings_goes_on(run, tmp_path: Path, capsys) -> None:
    """A setting that the run's recipe does not name had its default: the same is taken, another value is refused."""
    assert run("a", "--stage", "adapt") == 0
    for file in (tmp_path / "a" / "adapt").glob("*/state.json"):
        state = json.loads(file.read_text())
        del state["recipe"]["stages.adapt.loss.koleo_group"], state["recipe"]["model.rope_rescale"]
        file.write_text(json.dumps(state))
    assert run("a", "--stage", "adapt", "model.rope_rescale=2.0") == 1
    assert "model.rope_rescale was None when this run began, now 2.0" in capsys.readouterr().err
    assert run("a", "--stage", "adapt") == 0


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("draws", "draws=1: a seed gave other crops, masks and batches in the version that began this run"),
        ("model.drop_path_over_depth", "model.drop_path_over_depth was linear when this run began, now uniform"),
    ],
)
def test_a_run_of_a_version_that_did_otherwise_is_refused(key: str, said: str, run, tmp_path: Path, capsys) -> None:
    """What a run's recipe does not name is not taken for today's default where older versions did something else."""
    assert run("a", "--stage", "adapt") == 0
    for file in (tmp_path / "a" / "adapt").glob("*/state.json"):
        state = json.loads(file.read_text())
        del state["recipe"][key]
        file.write_text(json.dumps(state))
    assert run("a", "--stage", "adapt") == 1
    assert said in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_loses_nothing(run, tmp_path: Path, monkeypatch, capsys) -> None:
    """No room for the second checkpoint: one line, the first is whole, and with room again the end is the same."""
    real = checkpoint.save_file

    def full(tensors: dict, path: Path) -> None:
        if "00000003" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    assert run("a") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "No space left on device; the last checkpoint is whole" in error
    assert checkpoint.newest(tmp_path / "a" / "adapt").step == 0
    monkeypatch.setattr(checkpoint, "save_file", real)
    assert run("a") == 0 and run("whole") == 0
    assert_same_run(tmp_path / "a", tmp_path / "whole")


def test_two_trainers_refuse_each_other(run, tmp_path: Path, capsys) -> None:
    """While one process holds the run's folder, another stops."""
    with disk.sole_writer(tmp_path / "a"):
        assert run("a") == 1
    assert "another process writes there" in capsys.readouterr().err


def test_an_encoder_is_found_by_run_stage_and_step(run, tmp_path: Path) -> None:
    """A run gives its last stage's newest teacher; its output is that of the teacher's backbone."""
    assert run("a") == 0
    found = encoder.load_encoder(tmp_path / "a")
    assert found.source == "a/second/00000003 (teacher)"
    stored = load_file(tmp_path / "a" / "second" / "00000003" / "teacher.safetensors")
    assert torch.equal(found.model.state_dict()["cls_token"], stored["backbone.cls_token"])
    assert encoder.load_encoder(tmp_path / "a" / "adapt").source == "a/adapt/00000008 (teacher)"
    start = encoder.load_encoder(tmp_path / "a" / "adapt" / "00000000")
    assert start.digest == encoder.random_encoder(tmp_path / "a", seed=0).digest != found.digest
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint there"):
        encoder.load_encoder(tmp_path)


def test_a_stage_starts_from_other_weights(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """init_from a run of ours: its teacher's backbone, fresh heads; frozen first steps leave the backbone as it was."""
    assert run("first") == 0
    words = (f"stages.adapt.init_from={tmp_path / 'first' / 'adapt'}", "stages.adapt.optim.freeze_backbone_steps=5")
    assert run("other", *words, "seed=7", "save.keep_every=1", "save.every=1") == 0
    start, given = (
        weights(tmp_path / "other" / "adapt" / "00000000"),
        weights(tmp_path / "first" / "adapt" / "00000008"),
    )
    frozen, moved = (weights(tmp_path / "other" / "adapt" / f"{step:08d}") for step in (5, 8))
    names = [name.removeprefix("teacher.") for name in given if name.startswith("teacher.backbone.")]
    assert names
    for name in names:
        assert torch.equal(start[f"student.{name}"], given[f"teacher.{name}"])
        assert torch.equal(start[f"teacher.{name}"], given[f"teacher.{name}"])
        assert torch.equal(frozen[f"student.{name}"], start[f"student.{name}"])
    assert not torch.equal(start["student.dino_head.mlp.0.weight"], given["student.dino_head.mlp.0.weight"])
    assert not torch.equal(frozen["student.dino_head.mlp.0.weight"], start["student.dino_head.mlp.0.weight"])
    assert not torch.equal(moved["student.backbone.cls_token"], start["student.backbone.cls_token"])
    capsys.readouterr()
    assert run("wrong", f"stages.adapt.init_from={tmp_path / 'first'}", "model.depth=3") == 1
    assert "set model.depth=2" in capsys.readouterr().err
    assert run("nowhere", f"stages.adapt.init_from={tmp_path / 'nothing.pth'}") == 1
    assert "nothing.pth: not found" in capsys.readouterr().err
