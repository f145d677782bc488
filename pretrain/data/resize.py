"""Antialiased bicubic crop-and-resize, and blur, as weights along one axis of the image and then along the other.

The weights equal those of `torch.nn.functional.interpolate(mode="bicubic", antialias=True)` on the cropped image. They
come as whole matrices for a device that multiplies those fastest (`weights`, `blur_weights`, `apply`), and as the few
of them that are not zero (`taps`, `blur_taps`), for a CPU: see pretrain/bags.py.
"""

from __future__ import annotations

import math

import torch

_A = -0.5  # of the cubic kernel: what antialiased interpolation uses (Keys, 1981)


def weights(start: torch.Tensor, length: torch.Tensor, extent: int, size: int, flip: torch.Tensor) -> torch.Tensor:
    """(N, size, extent) matrices that crop `length` pixels from `start` of an axis and resize them to `size`.

    start, length  (N,) whole numbers as int64, 0 ≤ start, start + length ≤ extent
    flip           (N,) bool, reverses the result
    """
    start, length = start.view(-1, 1, 1).float(), length.view(-1, 1, 1).float()
    scale = length / size
    support = scale.clamp(min=1)  # below 1 the image is enlarged and the kernel keeps its own width
    place = torch.arange(size, device=start.device, dtype=torch.float32).view(1, -1, 1)
    place = torch.where(flip.view(-1, 1, 1), size - 1 - place, place)
    centre = scale * (place + 0.5)
    pixel = torch.arange(extent, device=start.device, dtype=torch.float32) - start  # exact: both count from the crop
    kernel = _cubic((pixel + 0.5 - centre) / support)
    # the kernel is cut at the crop's border and brought to sum 1 again
    kernel = torch.where((pixel >= 0) & (pixel < length), kernel, 0.0)
    return kernel / kernel.sum(dim=-1, keepdim=True)


def taps(length: int, size: int, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(size, T) int32 pixels, counted from the crop's start, and their weights: those of `weights` but for zeros."""
    scale = length / size
    support = max(scale, 1.0)
    count = min(math.ceil(4 * support), length)
    place = torch.arange(size, dtype=torch.float32).unsqueeze(1)
    centre = scale * ((size - 1 - place if flip else place) + 0.5)
    # at a border the pixels move inwards: those beyond it have no part in the sum
    first = (centre - 2 * support + 0.5).floor().clamp_(0, length - count)
    pixel = first + torch.arange(count)
    kernel = _cubic((pixel + 0.5 - centre) / support)
    return pixel.int(), kernel / kernel.sum(dim=-1, keepdim=True)


def blur_weights(sigma: torch.Tensor, size: int) -> torch.Tensor:
    """(…, size, size) Gaussian smoothing of one axis; the identity where sigma is 0; rows sum to 1."""
    place = torch.arange(size, device=sigma.device, dtype=torch.float32)
    squared = (place.unsqueeze(0) - place.unsqueeze(1)).square()
    width = 2 * sigma.clamp(min=1e-3).square()[..., None, None]
    kernel = torch.exp(-squared / width)
    return kernel / kernel.sum(dim=-1, keepdim=True)


def blur_taps(reach: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(size, T) int32 pixels with a part in each of a smoothed axis, and int64 how far away they are: to `reach`."""
    count = min(2 * reach + 1, size)
    place = torch.arange(size, dtype=torch.int32).unsqueeze(1)
    pixel = (place - reach).clamp_(0, size - count) + torch.arange(count, dtype=torch.int32)
    return pixel, (pixel - place).abs_().long()


def apply(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(N, S, H, W) images by (N, S or 1, h, H) and (N, S or 1, w, W) weights → (N, S, h, w)."""
    return rows @ (images @ columns.transpose(2, 3))


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    x = distance.abs()
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
