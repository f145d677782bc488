"""Distortions of a whole slice before it is cropped, which all of its crops share (FlexiCT).

noise → smoothing → scaling → low resolution → gamma

Each operation is MONAI's, on the slice windowed, clipped and standardised. MONAI sees the whole picture, here it is the
foreground box, because a slice's padding depends on its batch: gamma's least and largest value are the box's, and
smoothing goes on with the border's own values where MONAI's goes on with zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from pretrain.data.randomness import gaussian, uniforms

_PURPOSE = 8  # of the randomness
_NUMBERS = 12  # of a slice
_REACH = 4.0  # deviations of the smoothing's kernel
_FLAT = 1e-7  # smallest range of values that gamma stretches


@dataclass(frozen=True)
class SliceSettings:
    """Probabilities and strengths of a slice's distortions, in units of the standardised value.

    noise_std       largest deviation of the noise; it is uniform from 0
    smooth_sigma    range of the Gaussian's deviation in pixels of the slice, drawn for each axis
    scale           values are multiplied by 1 ± up to this
    low_resolution  range of the zoom to which the slice is shrunk (nearest neighbour) and enlarged again (linearly)
    gamma           range of the exponent of values counted from the least to the largest one of the box
    """

    noise_p: float = 0.0
    noise_std: float = 0.1
    smooth_p: float = 0.0
    smooth_sigma: tuple[float, float] = (0.5, 1.0)
    scale_p: float = 0.0
    scale: float = 0.25
    low_resolution_p: float = 0.0
    low_resolution: tuple[float, float] = (0.5, 1.0)
    gamma_p: float = 0.0
    gamma: tuple[float, float] = (0.7, 1.5)

    @property
    def on(self) -> bool:
        """Whether anything can be drawn."""
        return max(self.noise_p, self.smooth_p, self.scale_p, self.low_resolution_p, self.gamma_p) > 0


class Distortion(NamedTuple):
    """The distortion of one slice; the defaults do nothing. `key` seeds the noise, in 0 … 2³² − 1."""

    noise: float = 0.0
    key: int = 0
    sigma: tuple[float, float] = (0.0, 0.0)
    factor: float = 1.0
    zoom: float = 1.0
    gamma: float = 1.0


NONE = Distortion()


def sample(
    settings: SliceSettings, seed: int, epoch: np.ndarray, sample: np.ndarray, sequence: int
) -> list[Distortion]:
    """Draw the distortion of each of B samples' slice of the sequence with this number."""
    draws = uniforms(seed, epoch, sample, _PURPOSE, _NUMBERS, sequence)
    return [_drawn(settings, *row) for row in draws.tolist()]


def _drawn(settings: SliceSettings, *draws: float) -> Distortion:
    noisy, strength, key, smooth, rows, columns, scaled, factor, coarse, zoom, bent, gamma = draws
    every = NONE
    if noisy < settings.noise_p:
        every = every._replace(noise=settings.noise_std * strength, key=int(key * 2**32))
    if smooth < settings.smooth_p:
        every = every._replace(sigma=(_within(settings.smooth_sigma, rows), _within(settings.smooth_sigma, columns)))
    if scaled < settings.scale_p:
        every = every._replace(factor=1 + settings.scale * (2 * factor - 1))
    if coarse < settings.low_resolution_p:
        every = every._replace(zoom=_within(settings.low_resolution, zoom))
    if bent < settings.gamma_p:
        every = every._replace(gamma=_within(settings.gamma, gamma))
    return every


def _within(bounds: tuple[float, float], draw: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * draw


def distorted(
    plane: torch.Tensor, box: list[int], drawn: Distortion, window: list[float], standard: list[float]
) -> torch.Tensor:
    """Return (H, W) float32: a plane of stored values clipped to `window` and, inside its foreground box, distorted.

    standard  mean and standard deviation of the windowed values
    They are stored values still, now with fractions and, where the distortion leads there, outside the window.
    """
    low, high = window
    seen = plane.float().clamp_(low, high)
    if drawn != NONE:
        row0, row1, column0, column1 = box
        inside = seen[row0:row1, column0:column1]
        zero, one = low + (high - low) * standard[0], (high - low) * standard[1]
        inside.copy_(apply((inside - zero) / one, drawn) * one + zero)
    return seen


def apply(image: torch.Tensor, drawn: Distortion) -> torch.Tensor:
    """Return an (H, W) float32 standardised image with the distortion that was drawn for it."""
    if drawn.noise:
        keys = torch.tensor([drawn.key], device=image.device)
        image = image + drawn.noise * gaussian(keys, tuple(image.shape))[0]
    if max(drawn.sigma) > 0:
        image = _smoothed(_smoothed(image, drawn.sigma[0]).T, drawn.sigma[1]).T
    if drawn.factor != 1:
        image = image * drawn.factor
    if drawn.zoom != 1:
        size = [max(1, round(side * drawn.zoom)) for side in image.shape]
        small = F.interpolate(image[None, None], size, mode="nearest")
        image = F.interpolate(small, image.shape, mode="bilinear", align_corners=False)[0, 0]
    if drawn.gamma != 1:
        least = image.min()
        extent = image.max() - least
        image = ((image - least) / extent.clamp(min=_FLAT)) ** drawn.gamma * extent + least
    return image


def _smoothed(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Smooth along the first axis: each pixel's weight is the Gaussian's integral over it.

    Shifted copies are summed, because a GPU's convolutions may round to ten bits.
    """
    if sigma <= 0:
        return image
    reach = int(max(_REACH * sigma, 0.5) + 0.5)
    edges = [math.erf((place - 0.5) / (sigma * math.sqrt(2))) for place in range(-reach, reach + 2)]
    padded = F.pad(image[None], (0, 0, reach, reach), mode="replicate")[0]
    total = torch.zeros_like(image)
    for place, (before, after) in enumerate(zip(edges, edges[1:])):
        total.add_(padded[place : place + len(image)], alpha=(after - before) / 2)
    return total
