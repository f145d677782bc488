"""Rotary position embedding in two dimensions, as DINOv3 uses it (arXiv 2508.10104, section 3.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
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

    def forward(self, rows: int, columns: int, prefix: int = 0, stretch: float = 1.0) -> Rotation:
        """(sine, cosine), each (prefix + rows · columns, head_dim) float32, patches in row-major order.

        Coordinates are multiplied by `stretch`. The `prefix` tokens before the patches (cls, registers) have no
        place: they turn by nothing. The sine carries the sign of the rotation, minus in the first half of the channels.
        """
        device = self.periods.device
        axes = [(torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n * 2 - 1 for n in (rows, columns)]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2, 1)
        angles = F.pad((2 * math.pi * stretch * places / self.periods.float()).flatten(1), (0, 0, prefix, 0))
        sine, cosine = angles.sin(), angles.cos()
        return torch.cat([-sine, sine], dim=-1), torch.cat([cosine, cosine], dim=-1)


def rotate(tokens: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """(…, T, head_dim) tokens of any float type turned by two times (T, head_dim) float32, computed in float32."""
    sine, cosine = rotation
    swapped = tokens.roll(tokens.shape[-1] // 2, dims=-1)  # halves exchanged: the partner of every channel
    return torch.addcmul(tokens * cosine, swapped, sine).to(tokens.dtype)
