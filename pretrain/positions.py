"""DINOv2's learned positions for a grid of patches of any size."""

from __future__ import annotations

import math

import torch

_A = -0.75  # of the cubic kernel: what PyTorch's bicubic interpolation without antialiasing uses


def resampled(places: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(1, 1 + g·g, D) positions → (1, 1 + rows · columns, D); the cls token's stays.

    DINOv2 computes the resampling scale from the size plus 0.1, which shifts the sampling points slightly; its weights
    are used so, and so are they here. On the grid's own size they are taken as they are. Written without branches, so
    that sizes may stay open in an exported graph.
    """
    side = math.isqrt(places.shape[1] - 1)
    square = places[0, 1:].float().unflatten(0, (side, side))
    sizes = [torch.scalar_tensor(size, dtype=torch.float64, device=places.device) for size in (rows, columns)]
    own = (sizes[0] == side) & (sizes[1] == side)
    down, across = (
        _weights(count, side, torch.where(own, 1.0, (size + 0.1) / side)) for count, size in zip((rows, columns), sizes)
    )
    patches = torch.einsum("rs,std,ct->rcd", down, square, across).flatten(0, 1)
    return torch.cat([places[:, :1], patches.unsqueeze(0).to(places.dtype)], dim=1)


def _weights(count: int, side: int, scale: torch.Tensor) -> torch.Tensor:
    """(count, side) of cubic interpolation at (i + ½) / scale − ½; beyond the border its last value counts."""
    place = (torch.arange(count, dtype=torch.float64, device=scale.device) + 0.5) / scale - 0.5
    first, known = place.floor(), torch.arange(side, device=scale.device)
    weights = torch.zeros(1, side, dtype=torch.float64, device=scale.device)
    for tap in (-1, 0, 1, 2):
        at = first + tap
        weights = weights + _cubic((place - at).abs())[:, None] * (at.clamp(0, side - 1)[:, None] == known)
    return weights.float()


def _cubic(x: torch.Tensor) -> torch.Tensor:
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, far)
