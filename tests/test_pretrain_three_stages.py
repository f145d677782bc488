"""Three stages of a tiny model on real CT: they chain, the anchor holds, and a kill in any of them changes nothing."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import processes
from helpers.tiny_run import rows, weights

from data_prep import identity, shard_ct
from pretrain.runtime import checkpoint, metrics

STEPS = {"adapt": 30, "gram": 16, "highres": 6}
CONFIG = """
name: tiny
intensity: {window: [-250, 450], mean: 0.4, std: 0.25}
model: {patch_size: 8, embed_dim: 48, depth: 3, num_heads: 3, registers: 2, layer_scale: null, drop_path: 0.1,
        rope_rescale: 1.5}
dino_head: {prototypes: 24, hidden_dim: 48, bottleneck_dim: 16, unit_norm_rows: true}
ibot_head: {prototypes: 32, hidden_dim: 48, bottleneck_dim: 16, unit_norm_rows: true}
stage_defaults:
  batch_size: 12
  crops: {global_size: 48, local_size: 24, local_number: 3, min_body: 0.4, body_threshold_hu: -300}
  augment: {noise_p: 0.5, noise_std: 0.02, window_shift: 40, window_stretch: 0.2}
  loss: {koleo_group: 6}
  optim:
    layer_decay: 1.0
    teacher_momentum: {start: 0.9, peak: 0.9}
    teacher_temp: {start: 0.06, peak: 0.06}
    freeze_last_layer_steps: 0
stages:
  adapt: {steps: 30, optim: {lr: {peak: 2.0e-3, warmup_steps: 5}}}
  gram:
    steps: 16
    gram: {teacher_from: adapt/15, size: 96, weight: {start: 20.0, peak: 20.0}}
    optim: {lr: {peak: 1.0e-3}}
  highres:
    steps: 6
    crops:
      mixture:
      - {ratio: 1, global_size: 64, local_size: 24, gram_size: 96}
      - {ratio: 1, global_size: 96, local_size: 40, gram_size: 128}
    loss: {koleo_group: 2, dino_local: {start: 0.5, peak: 0.5}}
    gram: {teacher_from: adapt/15, size: 96, weight: {start: 10.0, peak: 10.0}}
    optim: {lr: {peak: 5.0e-4}}
save: {every: 5}
machine: {device: cpu, precision: float32, tensorboard: false, accumulate: 2}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices of five real patients."""
    data = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "ct_openkbp"
    if not data.is_dir():
        pytest.skip("needs ../shared/data/ct_openkbp, which is not beside this checkout")
    root = tmp_path_factory.mktemp("real")
    for patient in sorted(data.iterdir())[:5]:
        shutil.copytree(patient, root / "in" / patient.name)
    shares = ["split.train=1.0", "split.val=0.0", "split.test=0.0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.VARIABLE, "tests")
        assert shard_ct.main(["--input", str(root / "in"), "--output", str(root / "out"), *shares]) == 0
    return root / "out"


def arguments(folder: Path, shards: Path, name: str) -> list[str]:
    """What trains all three stages as run `name`."""
    (folder / "c.yaml").write_text(CONFIG)
    return ["--config", str(folder / "c.yaml"), f"name={name}", f"output={folder}", f"data.root={shards}"]


def train(arguments: list[str], logs: Path) -> None:
    """Train in a process of its own, with one thread as all of them."""
    assert processes.train(arguments, 1, logs) == [0], processes.said(logs)


def kill_in(arguments: list[str], logs: Path, stage: Path, after: int) -> None:
    """Start a run and kill it, unasked, once the stage has more than `after` rows."""
    running = processes.start(arguments, 1, logs)
    deadline = time.monotonic() + 120
    while len(metrics.read(stage / "metrics.jsonl")) <= after:
        assert running.launcher.is_alive() and time.monotonic() < deadline, processes.said(logs)
        time.sleep(0.02)
    os.kill(running.pids()[0], signal.SIGKILL)
    assert running.finish() == [-signal.SIGKILL]


def test_three_stages_on_real_ct(shards: Path, tmp_path: Path) -> None:
    """Stages chain, the anchor holds the patches, stage 3 meets its sizes; killed in every stage, the same rows and
    weights."""
    train(arguments(tmp_path, shards, "whole"), tmp_path / "logs")
    run = tmp_path / "whole"
    for before, name in zip(STEPS, list(STEPS)[1:]):
        start, end = (weights(run / place) for place in (f"{name}/00000000", f"{before}/{STEPS[before]:08d}"))
        assert all(torch.equal(start[key], end[key]) for key in start if key.startswith(("student.", "teacher.")))
        anchors = checkpoint.read(run / name / "00000000").tensors("gram")
        named = checkpoint.read(run / "adapt" / "00000015").tensors("teacher")
        assert all(torch.equal(value, named[f"backbone.{key}"]) for key, value in anchors.items())
    shutil.copytree(run / "adapt", tmp_path / "free" / "adapt")
    loose = ["stages.gram.gram.weight.start=0", "stages.gram.gram.weight.peak=0", "--stage", "gram"]
    train([*arguments(tmp_path, shards, "free"), *loose], tmp_path / "logs")
    # beside the same batches without the weight, for this loss differs more between batches than between steps
    held, free = (sum(row["loss/gram"] for row in rows(each / "gram")[-8:]) for each in (run, tmp_path / "free"))
    assert held < 0.9 * free
    found = rows(run / "highres")
    assert {row["crop"] for row in found} == {64, 96} and {row["batch"] for row in found} == {12}

    killed = arguments(tmp_path, shards, "killed")
    for name, after in (("adapt", 12), ("gram", 7), ("highres", 2)):
        kill_in(killed, tmp_path / "logs", tmp_path / "killed" / name, after)
    train(killed, tmp_path / "logs")
    for name, steps in STEPS.items():
        assert rows(tmp_path / "killed" / name) == rows(run / name) and len(rows(run / name)) == steps
        ours, theirs = (weights(tmp_path / each / name / f"{steps:08d}") for each in ("whole", "killed"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
