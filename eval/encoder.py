"""The contract between an encoder and the probes, and our own checkpoints as encoders.

Another model enters every probe by an object with these attributes and two methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from eval.config import TaskConfig
from data_prep.settings import SettingsError
from pretrain import encoder
from pretrain.encoder import Encoder
from pretrain.machine import autocast, pick_device


class FrozenEncoder(Protocol):
    """What a probe needs.

    source, digest   where it came from; a hash over weights and architecture
    patch_size       pixels; embed_dim: channels of one block's features
    """

    source: str
    digest: str
    patch_size: int
    embed_dim: int

    def prepare(self, hu: torch.Tensor) -> torch.Tensor:
        """(N, 1, h, w) float32 HU → the network's input."""

    def features(self, images: torch.Tensor, blocks: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each block: cls (N, D) and patches (N, P, D) in row-major order, float32."""


class CheckpointEncoder:
    """A backbone of ours; see FrozenEncoder."""

    def __init__(self, loaded: Encoder, bf16: bool = True) -> None:
        self.source, self.digest = loaded.source, loaded.digest
        self.patch_size, self.embed_dim = loaded.model.patch_size, loaded.model.embed_dim
        self._device = pick_device("auto")
        self._model, self._intensity = loaded.model.to(self._device), loaded.intensity
        self._precision = autocast("auto" if bf16 else "float32", self._device)

    def prepare(self, hu: torch.Tensor) -> torch.Tensor:
        return self._intensity.normalise(hu)

    def features(self, images: torch.Tensor, blocks: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        with torch.inference_mode(), self._precision:
            found = self._model.intermediate(images.to(self._device), blocks)
        return [(each.cls.float().cpu(), each.patches.float().cpu()) for each in found]


def load(checkpoint: str, task: TaskConfig) -> FrozenEncoder:
    """The encoder that `--checkpoint` names: a run, stage or step folder, or `random` (architecture of `like`)."""
    if checkpoint != "random":
        return CheckpointEncoder(encoder.load_encoder(checkpoint), task.bf16)
    if task.like is None:
        raise SettingsError("--checkpoint random: give like=CHECKPOINT, whose architecture it takes")
    return CheckpointEncoder(encoder.random_encoder(task.like, task.seed), task.bf16)
