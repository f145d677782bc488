"""A small vision transformer."""

from __future__ import annotations

import torch

from pretrain.model.vit import VisionTransformer


def model_of(depth: int = 3, drop_path: float = 0.0, **more: object) -> VisionTransformer:
    """Return a small transformer in training mode, every weight drawn from a normal distribution."""
    torch.manual_seed(0)
    model = VisionTransformer(patch_size=8, embed_dim=32, depth=depth, num_heads=2, drop_path=drop_path, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.train()
