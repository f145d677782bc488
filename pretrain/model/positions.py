"""DINOv2's learned positions for a grid of patches of any size."""

from __future__ import annotations

import math

import torch

# of the cubic kernel: what PyTorch's bicubic interpolation uses without and with antialiasing
_PLAIN, _ANTIALIASED = -0.75, -0.5


def resampled(places: torch.Tensor, rows: int, columns: int, antialias: bool = False) -> torch.Tensor:
    """(1, 1 + g·g, D) positions → (1, 1 + rows · columns, D); the cls token's stays.

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
