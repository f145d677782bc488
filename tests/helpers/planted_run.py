"""A tiny run whose kept teachers are what a test says: which milestone is best is then known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from meddap.disk import file_sha256
from pretrain import train

Weights = dict[str, torch.Tensor]
CONFIG = """
name: planted
model: {patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, registers: 1, layer_scale: null}
dino_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
ibot_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
stages: {adapt: {steps: 4, batch_size: 8, crops: {global_size: 32, local_size: 16, local_number: 1}}}
save: {every: 1, keep_every: 1}
machine: {device: cpu, tensorboard: false}
"""


def trained(folder: Path, data: Path) -> Path:
    """A run of four steps that keeps each of them."""
    (folder / "config.yaml").write_text(CONFIG)
    assert train.main(["--config", str(folder / "config.yaml"), f"output={folder}", f"data.root={data}"]) == 0
    return folder / "planted"


def plant(run: Path, changes: Mapping[int, Callable[[Weights], Weights]]) -> None:
    """Replace the teachers of some steps by changed ones of the start."""
    start = load_file(run / "adapt" / "00000000" / "teacher.safetensors")
    for step, change in changes.items():
        folder = run / "adapt" / f"{step:08d}"
        path = folder / "teacher.safetensors"
        save_file(change({name: value.clone() for name, value in start.items()}), path)
        state = json.loads((folder / "state.json").read_text())
        state["files"][path.name] = file_sha256(path)
        (folder / "state.json").write_text(json.dumps(state))


def noisy(share: float, seed: int = 0) -> Callable[[Weights], Weights]:
    """Weights with noise of a share of each tensor's own spread added."""

    def change(weights: Weights) -> Weights:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: value + share * value.std().nan_to_num() * torch.randn(value.shape, generator=generator)
            for name, value in weights.items()
        }

    return change


def blind(seed: int = 0) -> Callable[[Weights], Weights]:
    """Weights that see next to nothing of an image: the patch embedding is a whisper, the positions shout."""

    def change(weights: Weights) -> Weights:
        changed = noisy(0.01, seed)(weights)
        key = "backbone.patch_embed.proj.weight"
        return changed | {key: changed[key] * 1e-6}

    return change
