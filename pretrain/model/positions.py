"""Positions of patches: DINOv3's rotary embedding (RoPE), and DINOv2's learned grid resampled to any size."""

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

    def forward(self, rows: int, columns: int, prefix: int = 0, rope_scale: float = 1.0) -> Rotation:
        """Return (sine, cosine), each (prefix + rows · columns, head_dim) float32, patches in row-major order.

        Coordinates are multiplied by `rope_scale`. The `prefix` tokens before the patches (cls, registers) have no
        position and are not rotated. The sine carries the rotation's sign, minus in the first half of the channels.
        """
        device = self.periods.device
        axes = [(torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n * 2 - 1 for n in (rows, columns)]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2, 1)
        angles = F.pad((2 * math.pi * rope_scale * places / self.periods.float()).flatten(1), (0, 0, prefix, 0))
        sine, cosine = angles.sin(), angles.cos()
        return torch.cat([-sine, sine], dim=-1), torch.cat([cosine, cosine], dim=-1)


def rotate(tokens: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate (…, T, head_dim) tokens of any float type by 2 × (T, head_dim) float32; computed in float32."""
    sine, cosine = rotation
    swapped = tokens.roll(tokens.shape[-1] // 2, dims=-1)  # halves exchanged: the partner of every channel
    return torch.addcmul(tokens * cosine, swapped, sine).to(tokens.dtype)


# of the cubic kernel: what PyTorch's bicubic interpolation uses without and with antialiasing
_PLAIN, _ANTIALIASED = -0.75, -0.5


def resampled(places: torch.Tensor, rows: int, columns: int, antialias: bool = False) -> torch.Tensor:
    """Resample (1, 1 + g·g, D) learned positions to (1, 1 + rows · columns, D); the cls token's stays.

    antialias  as DINOv2's models with registers have it: F.interpolate(size=…, mode="bicubic", antialias=True).
               Without it, as those without: the scale is computed from the size plus 0.1, which shifts the sampling
               points slightly
    On the grid's own size the positions are taken as they are. Written without branches on sizes, so that these may
    stay open in an exported graph. Source: dinov2/hub/backbones.py, dinov2/models/vision_transformer.py.
    """
    side = math.isqrt(places.shape[1] - 1)
    square = places[0, 1:].float().unflatten(0, (side, side))
    sizes = [torch.scalar_tensor(size, dtype=torch.float64, device=places.device) for size in (rows, columns)]
    if antialias:
        down, across = (_wide(count, side, side / size) for count, size in zip((rows, columns), sizes))
    else:
        own = (sizes[0] == side) & (sizes[1] == side)
        scales = (torch.where(own, 1.0, side / (size + 0.1)) for size in sizes)
        down, across = (_narrow(count, side, scale) for count, scale in zip((rows, columns), scales))
    patches = torch.einsum("rs,std,ct->rcd", down, square, across).flatten(0, 1)
    return torch.cat([places[:, :1], patches.unsqueeze(0).to(places.dtype)], dim=1)


def _centres(count: int, scale: torch.Tensor) -> torch.Tensor:
    """(count,) centres of the new places in the old grid, whose own centres lie at j + ½."""
    return (torch.arange(count, dtype=torch.float64, device=scale.device) + 0.5) * scale


def _narrow(count: int, side: int, scale: torch.Tensor) -> torch.Tensor:
    """(count, side) weights of four neighbours; beyond the border its last value counts."""
    place = _centres(count, scale) - 0.5
    first, known = place.floor(), torch.arange(side, device=scale.device)
    weights = torch.zeros(1, side, dtype=torch.float64, device=scale.device)
    for tap in (-1, 0, 1, 2):
        at = first + tap
        weights = weights + _cubic((place - at).abs(), _PLAIN)[:, None] * (at.clamp(0, side - 1)[:, None] == known)
    return weights.float()


def _wide(count: int, side: int, scale: torch.Tensor) -> torch.Tensor:
    """(count, side) weights of a kernel that widens as the grid shrinks; cut at the border, rows sum to 1."""
    known = torch.arange(side, dtype=torch.float64, device=scale.device) + 0.5
    distance = (known - _centres(count, scale)[:, None]).abs() / scale.clamp(min=1.0)
    weights = torch.where(distance < 2, _cubic(distance, _ANTIALIASED), 0.0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _cubic(x: torch.Tensor, a: float) -> torch.Tensor:
    """The kernel at distances 0 … 2."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, far)
