"""The baseline under every table: statistics of pixels instead of a network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F


class PixelBaseline:
    """Statistics of pixels; what beats chance here owes nothing to a network.

    A patch's features are mean, spread, minimum, maximum and four coarse cells of its pixels, padded with zeros;
    those of the cls token are 16 quantiles and the 4 × 4 thumbnail of the image. All of them for each channel, of
    colour pictures three.
    """

    source, window = "pixels", (-1000.0, 1000.0)
    patch_size, depth = 8, 1
    digest = hashlib.sha256(b"pixel statistics 1").hexdigest()

    def __init__(self, channels: int = 1) -> None:
        self.channels, self.embed_dim = channels, 32 * channels
        if channels > 1:
            self.digest = hashlib.sha256(f"{self.digest}, {channels} channels".encode()).hexdigest()

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def features(
        self, images: torch.Tensor, blocks: Sequence[int], present: torch.Tensor | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        each = [self._statistics(channel) for channel in images.split(1, dim=1)]
        cls, patches = (torch.cat(parts, dim=-1) for parts in zip(*each))
        return [(cls, patches) for _ in blocks]

    def _statistics(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 32) of the whole and (N, P, 32) of the patches of (N, 1, h, w) images."""
        count, size = len(images), self.patch_size
        tokens = F.unfold(images, size, stride=size).transpose(1, 2)
        cells = F.adaptive_avg_pool2d(tokens.reshape(-1, 1, size, size), 2).reshape(*tokens.shape[:2], 4)
        summary = [tokens.mean(2), tokens.std(2), tokens.amin(2), tokens.amax(2)]
        patches = torch.cat([torch.stack(summary, dim=2), cells], dim=2)
        patches = F.pad(patches, (0, 32 - patches.shape[2]))
        quantiles = torch.quantile(images.reshape(count, -1), torch.linspace(0, 1, 16), dim=1).T
        return torch.cat([quantiles, F.adaptive_avg_pool2d(images, 4).reshape(count, -1)], dim=1), patches
