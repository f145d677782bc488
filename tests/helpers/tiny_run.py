"""A run that takes seconds, and what tests read of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.runtime import metrics

CONFIG = """
name: tiny
model: {patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, registers: 2, layer_scale: null, drop_path: 0.1}
dino_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16, unit_norm_rows: true}
ibot_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16, unit_norm_rows: true}
stage_defaults:
  batch_size: 8
  crops: {global_size: 32, local_size: 16, local_number: 2}
  augment: {noise_p: 0.5, noise_std: 0.05, window_shift: 20}
  optim: {lr: {peak: 1.0e-3, warmup_steps: 2}, freeze_last_layer_steps: 2}
stages:
  adapt: {steps: 8}
  second: {steps: 3, optim: {lr: {peak: 1.0e-4}}}
save: {every: 3}
machine: {device: cpu, precision: float32, tensorboard: false}
"""

# instead of CONFIG's model: four MRI sequences, half of the patients labelled
MRI = """
data: {sequences: [t1, t1c, t2, flair], labels: [tumour], labelled_share: 0.5}
model: {patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, registers: 2, layer_scale: null, drop_path: 0.1,
        sequences: [flair, t1, t1c, t2]}
"""

# for stages of one or two steps, which neither a warm-up nor a freeze fits in
SHORT = ("stage_defaults.optim.lr.warmup_steps=0", "stage_defaults.optim.freeze_last_layer_steps=0")


def rows(folder: Path) -> list[dict]:
    """The metrics of a stage without what the clock says."""
    found = metrics.read(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in metrics.TIMING} for row in found]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Student, teacher and optimizer of a step folder."""
    names = ("student", "teacher", "optimizer")
    return {
        f"{name}.{key}": value for name in names for key, value in load_file(folder / f"{name}.safetensors").items()
    }


def stop_after_every_step(start: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> int:
    """Start a run again and again, each start dying after the next step, until it ends by itself; how often it died."""
    write, died = metrics.Metrics.write, set()

    def dying(self, row: dict) -> None:
        write(self, row)
        if (place := (self.stage, row["step"])) not in died:
            died.add(place)
            raise KeyboardInterrupt

    monkeypatch.setattr(metrics.Metrics, "write", dying)
    while True:
        try:
            assert start() == 0
            return len(died)
        except KeyboardInterrupt:
            continue
