"""Antialiased bicubic crop-and-resize of a batch as two matrix products per image.

The weights equal those of `torch.nn.functional.interpolate(mode="bicubic", antialias=True)` on the
cropped image, so one implementation serves every device, size and ratio.
"""

from __future__ import annotations

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
    centre = scale * (place + 0.5) + start
    pixel = torch.arange(extent, device=start.device, dtype=torch.float32)
    kernel = _cubic((pixel + 0.5 - centre) / support)
    # the kernel is cut at the crop's border and brought to sum 1 again
    kernel = torch.where((pixel >= start) & (pixel < start + length), kernel, 0.0)
    return kernel / kernel.sum(dim=-1, keepdim=True)


def apply(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(N, S, H, W) images by (N, S or 1, h, H) and (N, S or 1, w, W) weights → (N, S, h, w)."""
    return rows @ (images @ columns.transpose(2, 3))


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    x = distance.abs()
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
