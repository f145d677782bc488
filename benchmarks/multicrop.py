"""The crops of a picture as published trainers make them: one picture, one crop and one operation after the other.

By torchvision's transforms where it is installed, else by the same operations of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from pretrain.data import views

try:
    import torchvision
    from torchvision.transforms import v2
except (ImportError, RuntimeError):  # not there, or made for another PyTorch
    torchvision = v2 = None


class MultiCrop:
    """(b)'s crops of a picture (C, H, W): as many, of the sizes and with the probabilities of `settings`."""

    def __init__(self, settings: views.ViewSettings) -> None:
        self.settings, one = settings, settings
        crops = [(one.global_size, one.global_scale, blur_p) for blur_p in one.blur_p[:2]]
        crops += [(one.local_size, one.local_scale, one.blur_p[2])] * one.local_number
        make = self.torchvision if v2 else self.plain
        self.crops = [make(*crop) for crop in crops]

    def __call__(self, picture: torch.Tensor) -> list[torch.Tensor]:
        return [crop(picture) for crop in self.crops]

    def torchvision(self, size: int, scale: tuple[float, float], blur_p: float) -> Callable:
        """One crop by torchvision's transforms."""
        s = self.settings
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, scale, s.aspect, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(s.flip),
                v2.RandomApply([v2.GaussianBlur(9, s.blur_sigma)], blur_p),
                v2.RandomApply([v2.GaussianNoise(0.0, s.noise_std, clip=False)], s.noise_p),
                v2.Normalize([*s.intensity.means], [*s.intensity.stds]),
            ]
        )

    def plain(self, size: int, scale: tuple[float, float], blur_p: float) -> Callable:
        """The same operations without torchvision."""
        s = self.settings

        def crop(picture: torch.Tensor) -> torch.Tensor:
            row, column, height, width = _box(picture.shape[1:], scale, s.aspect)
            cut = picture[None, :, row : row + height, column : column + width]
            made = F.interpolate(cut, (size, size), mode="bicubic", antialias=True, align_corners=False)
            if torch.rand(()) < s.flip:
                made = made.flip(-1)
            if torch.rand(()) < blur_p:
                made = _blurred(made, torch.empty(()).uniform_(*s.blur_sigma).item())
            if torch.rand(()) < s.noise_p:
                made = made + torch.randn_like(made) * s.noise_std
            return s.intensity.standardise(made)[0]

        return crop


def _box(shape: Sequence[int], scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = shape[0] * shape[1] * torch.empty(()).uniform_(*scale).item()
        ratio = math.exp(torch.empty(()).uniform_(math.log(aspect[0]), math.log(aspect[1])).item())
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= shape[1] and 0 < height <= shape[0]:
            row = int(torch.randint(0, shape[0] - height + 1, ()))
            return row, int(torch.randint(0, shape[1] - width + 1, ())), height, width
    return 0, 0, shape[0], shape[1]


def _blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """As torchvision blurs: one two-dimensional kernel of nine pixels a side, for each channel."""
    place = torch.linspace(-4, 4, 9)
    line = torch.exp(-0.5 * (place / sigma) ** 2)
    line = line / line.sum()
    kernel = (line[:, None] @ line[None]).expand(image.shape[1], 1, 9, 9)
    return F.conv2d(F.pad(image, (4, 4, 4, 4), mode="reflect"), kernel, groups=image.shape[1])
