"""Rotary position embedding in two dimensions, as DINOv3 uses it (arXiv 2508.10104, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import nn

Rotation = tuple[torch.Tensor, torch.Tensor]


class RotaryEmbedding(nn.Module):
    """Sine and cosine for a grid of patches.

    Coordinates are those of the patch centres, each axis normalised to [-1, 1], so that a model sees
    the same positions at any resolution. One quarter of a head's channels turns per axis, and the
    same angles serve both halves of a pair.
    """

    periods: torch.Tensor

    def __init__(self, head_dim: int, base: float = 100.0) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"head dimension {head_dim}: RoPE in two dimensions needs a multiple of 4")
        exponents = 2 * torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 2)
        self.register_buffer("periods", base**exponents)

    def forward(self, rows: int, columns: int) -> Rotation:
        """(sine, cosine), each (rows · columns, head_dim) float32, patches in row-major order."""
        device = self.periods.device
        axes = [(torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n * 2 - 1 for n in (rows, columns)]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2, 1)
        angles = (2 * math.pi * places / self.periods.float()).flatten(1).repeat(1, 2)
        return angles.sin(), angles.cos()


def rotate(tokens: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turn the last P of the T tokens; those before them (cls, registers) have no place.

    tokens (N, heads, T, head_dim) of any float type; rotation two times (P, head_dim) float32, in
    which the turning is computed. Returns the type of `tokens`.
    """
    sine, cosine = rotation
    prefix = tokens.shape[-2] - sine.shape[-2]
    patches = tokens[..., prefix:, :].float()
    first, second = patches.chunk(2, dim=-1)
    turned = torch.addcmul(patches * cosine, torch.cat((-second, first), dim=-1), sine)
    return torch.cat((tokens[..., :prefix, :], turned.to(tokens.dtype)), dim=-2)
