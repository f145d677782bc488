"""From patch features to organ maps: a linear head, the Primus decoder, a U-Net-like decoder.

All take standardised features of one block or several, concatenated, (N, P, F), and draw `cells` × `cells`
output pixels per patch, each organ with a sigmoid of its own, so that a series in which an organ is
unlabelled says nothing about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from eval.config import DecoderKind

PRIOR = -4.0  # first bias: an organ covers about two per cent of an image


def spread(depth: int, count: int = 4) -> list[int]:
    """Return the blocks that end the quarters of a transformer: 2, 5, 8, 11 of 12; each once where there are fewer."""
    return sorted({math.ceil((number + 1) * depth / count) - 1 for number in range(count)})


class Standardise(nn.Module):
    """(…, F) features by the training features' mean and standard deviation.

    A part of a network: it moves to the device with it. What classical models are fitted on is standardised in float64
    over all units, as scikit-learn does it (eval.probes.logistic.Standard).
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def of(cls, features: torch.Tensor) -> Standardise:
        """Return the standardisation by a sample of training features (…, F); a constant channel is only centred."""
        flat = features.float().flatten(0, -2)
        std = flat.std(dim=0)
        return cls(flat.mean(dim=0), torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.std


class LinearDecoder(nn.Module):
    """A transposed convolution whose kernel is twice its stride, and nothing else.

    Every patch's features become a square of 2·cells pixels a side that overlaps its neighbours' by half;
    overlaps add up.
    """

    def __init__(self, width: int, organs: int, cells: int) -> None:
        super().__init__()
        if cells % 2:
            raise ValueError(f"cells {cells}: the linear decoder draws an even number per patch and axis")
        self.cells = cells
        self.map = nn.Linear(width, organs * (2 * cells) ** 2, bias=False)
        nn.init.zeros_(self.map.weight)
        self.bias = nn.Parameter(torch.full((organs,), PRIOR))

    def forward(self, patches: torch.Tensor, grid: tuple[int, int], images: torch.Tensor | None = None) -> torch.Tensor:
        squares, cells = self.map(patches).float().transpose(1, 2), self.cells
        size = grid[0] * cells, grid[1] * cells
        added = F.fold(squares, size, kernel_size=2 * cells, stride=cells, padding=cells // 2)
        return added + self.bias.view(1, -1, 1, 1)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (N, C, …)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.norm(maps.movedim(1, -1)).movedim(-1, 1)


class PrimusDecoder(nn.Module):
    """Transposed convolutions of stride 2 with norm and GELU between them, narrowing as they grow
    (arXiv 2503.01835, section 3). Several blocks enter side by side: multi-scale token aggregation."""

    def __init__(self, width: int, organs: int, cells: int, prior: float = PRIOR) -> None:
        super().__init__()
        strides = _factors(cells)
        narrowing = (width / (2 * organs)) ** (1 / len(strides))
        inner = [max(8, 8 * round(width / narrowing**stage / 8)) for stage in range(1, len(strides))]
        channels = [width, *inner, organs]
        layers: list[nn.Module] = []
        for number, stride in enumerate(strides):
            grow = nn.ConvTranspose2d(channels[number], channels[number + 1], stride, stride)
            layers.append(grow)
            if number < len(strides) - 1:
                layers += [ChannelNorm(channels[number + 1]), nn.GELU()]
        fill_bias(grow, prior)
        self.layers = nn.Sequential(*layers)

    def forward(self, patches: torch.Tensor, grid: tuple[int, int], images: torch.Tensor | None = None) -> torch.Tensor:
        return self.layers(_as_map(patches, grid)).float()


class UnetDecoder(nn.Module):
    """Blocks as the levels of a U-Net, the last the deepest, and the image itself as the finest (UNETR,
    arXiv 2103.10504): each step doubles the map, joins a shallower block brought to its size, and convolves."""

    needs_images = True

    def __init__(self, width: int, organs: int, cells: int, *, blocks: int, channels: int, in_channels: int) -> None:
        super().__init__()
        self.blocks, dim = blocks, width // blocks
        widths = [max(channels, 8) * 2**level for level in reversed(range(len(_factors(cells)) + 1))]
        self.deepest = convolved(dim, widths[0])
        self.grow, self.skip, self.join = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        scale = 1
        for number, stride in enumerate(_factors(cells)):
            scale *= stride
            last = number == len(_factors(cells)) - 1
            self.grow.append(nn.ConvTranspose2d(widths[number], widths[number + 1], stride, stride))
            side = convolved(in_channels, widths[number + 1]) if last else _raised(dim, widths[number + 1], scale)
            self.skip.append(side)
            self.join.append(convolved(2 * widths[number + 1], widths[number + 1]))
        self.out = nn.Conv2d(widths[-1], organs, 1)
        fill_bias(self.out, PRIOR)

    def forward(self, patches: torch.Tensor, grid: tuple[int, int], images: torch.Tensor | None = None) -> torch.Tensor:
        """Draw; `images` (N, C, h, w) of any size are seen by the finest level, at the size of the output."""
        assert images is not None
        levels = _as_map(patches, grid).chunk(self.blocks, dim=1)
        maps = self.deepest(levels[-1])
        for number, (grow, skip, join) in enumerate(zip(self.grow, self.skip, self.join)):
            maps = grow(maps)
            if number == len(self.grow) - 1:
                side = skip(F.interpolate(images, maps.shape[-2:], mode="bilinear", antialias=True))
            else:
                side = skip(levels[max(self.blocks - 2 - number, 0)])
            maps = join(torch.cat([maps, side], dim=1))
        return self.out(maps).float()


def build(
    kind: DecoderKind, width: int, organs: int, cells: int, blocks: int, channels: int = 16, in_channels: int = 1
) -> nn.Module:
    """Build the decoder called `kind`. Raises ValueError for another name or for cells that it cannot draw."""
    if kind == "linear":
        return LinearDecoder(width, organs, cells)
    if kind == "primus":
        return PrimusDecoder(width, organs, cells)
    if kind == "unet":
        return UnetDecoder(width, organs, cells, blocks=blocks, channels=channels, in_channels=in_channels)
    raise ValueError(f"{kind!r}: no such decoder; there are linear, primus, unet")


def _factors(cells: int) -> list[int]:
    """Return strides whose product is `cells`, the largest first: 8 → 2 2 2, 14 → 7 2, 1 → 1."""
    left, found, prime = cells, [], 2
    while left > 1:
        while left % prime == 0:
            found.append(prime)
            left //= prime
        prime += 1
    return found[::-1] or [1]


def _as_map(patches: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    return patches.transpose(1, 2).unflatten(2, tuple(grid))


def fill_bias(layer: nn.Conv2d | nn.ConvTranspose2d, value: float) -> None:
    """Set every bias of a layer that has them."""
    assert layer.bias is not None
    nn.init.constant_(layer.bias, value)


def convolved(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3 × 3 convolutions, each with instance norm and a leaky ReLU."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.InstanceNorm2d(outputs, affine=True), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)


def _raised(inputs: int, outputs: int, scale: int) -> nn.Sequential:
    """Return what brings patch tokens to `scale` times their grid."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, scale, scale), nn.InstanceNorm2d(outputs, affine=True))
