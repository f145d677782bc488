"""Encoders for tests, as a user would write one."""

from __future__ import annotations

import torch

from eval.encoders.encoder import CheckpointEncoder
from pretrain import build
from pretrain.config import IntensityConfig, ModelConfig
from pretrain.weights.encoder import frozen


class Pixels:
    """A user's own encoder in ten lines: the pixels of a patch are its features."""

    source, digest, patch_size, embed_dim, depth, window = "pixels", "0" * 64, 8, 64, 1, (-1000, 500)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return 3 * images - 2

    def features(self, images: torch.Tensor, blocks, present=None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        tokens = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
        return [(tokens.amax(dim=1), tokens) for _ in blocks]


def random_transformer(seed: int = 0, **changes: object) -> CheckpointEncoder:
    """A small transformer with random weights, four blocks deep."""
    small = {"patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2, "registers": 1, "layer_scale": None}
    config = ModelConfig(**{**small, **changes})
    model = build.backbone(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return CheckpointEncoder(frozen(model, build.intensity(IntensityConfig()), config, "random"))
