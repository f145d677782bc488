"""A light head in three dimensions over the features of neighbouring slices."""

from __future__ import annotations

import torch
from torch import nn

from eval.networks.decoders import ChannelNorm, LinearDecoder


class Residual(nn.Module):
    """x + conv(act(norm(x))), 3 × 3 × 3, on (B, C, Z, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)  # of each place by itself: a slice sees no further than its neighbours
        self.convolve = nn.Conv3d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.convolve.weight)  # it begins as the head that sees each slice alone
        nn.init.zeros_(self.convolve.bias)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.convolve(nn.functional.gelu(self.norm(maps)))


class StackHead(nn.Module):
    """Standardised features of stacks of slices (B, Z, P, F) → maps of structures, or scores of the whole stack.

    cells  output pixels per patch and axis for maps (B, Z, O, R, R); None for scores (B, O)
    """

    def __init__(self, width: int, outputs: int, cells: int | None, channels: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.project = nn.Linear(width, channels)
        self.trunk = nn.Sequential(*(Residual(channels) for _ in range(depth)))
        self.out = nn.Linear(channels, outputs) if cells is None else LinearDecoder(channels, outputs, cells)
        self.dense = cells is not None

    def forward(self, features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        count, slices = features.shape[:2]
        maps = self.project(features).unflatten(2, grid).permute(0, 4, 1, 2, 3)
        maps = self.trunk(maps)
        if not self.dense:
            return self.out(maps.mean(dim=(2, 3, 4))).float()
        tokens = maps.permute(0, 2, 3, 4, 1).flatten(0, 1).flatten(1, 2)
        return self.out(tokens, grid).unflatten(0, (count, slices))
