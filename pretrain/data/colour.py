"""Distortions of a crop's colours, DINOv2's: brightness, contrast, saturation and hue, grey, solarisation.

Formulas and ranges are those of torchvision's ColorJitter, RandomGrayscale and RandomSolarize on values in 0…1. The
references blur between greying and solarising; here crops are blurred while they are resampled, before all of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from pretrain.data.randomness import uniforms
from pretrain.runtime.device import to_device_async

_PURPOSE = 1024  # of the randomness; added to that of the crop's box
_NUMBERS = 11  # of a crop: whether it is jittered, 4 factors, their order, grey, solarised
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's digits of ITU-R BT.601
_THRESHOLD = 128 / 255  # values from here on are inverted by solarisation, as in the references


@dataclass(frozen=True)
class ColourSettings:
    """Probabilities and strengths of a crop's distortions; drawn for each crop and each sequence.

    jitter_p    probability that brightness, contrast, saturation and hue change, in random order
    brightness, contrast, saturation  factors are uniform in 1 ± this, and at least 0
    hue         shift of the hue, uniform in ± this; 1 is the whole circle
    grey_p      probability of grey
    solarise_p  probability that bright values are inverted: global crop 0, global crop 1, local crops
    """

    jitter_p: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey_p: float = 0.0
    solarise_p: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def on(self) -> bool:
        """Whether anything can be drawn."""
        return max(self.jitter_p, self.grey_p, *self.solarise_p) > 0


@dataclass(frozen=True)
class ColourDraws:
    """What is done to N crops, on the host.

    jitter, grey, solarise  (N,) bool
    factors  (N, 4) float32 of brightness, contrast, saturation and hue
    order    (N, 4) int64 numbers of these four, the first one first
    """

    jitter: np.ndarray
    grey: np.ndarray
    solarise: np.ndarray
    factors: np.ndarray
    order: np.ndarray

    def take(self, rows: np.ndarray) -> ColourDraws:
        """Return some of the draws, in this order."""
        return ColourDraws(*(getattr(self, field.name)[rows] for field in fields(self)))


def sample(
    settings: ColourSettings, seed: int, epoch: np.ndarray, sample: np.ndarray, crop: int, place: int, sequence: int
) -> ColourDraws:
    """Draw for one crop of (B,) samples.

    crop      purpose of the randomness of the crop's box
    place     0 and 1: global crops, 2: local ones
    sequence  number of the sequence: each has its own draws
    """
    draws = uniforms(seed, epoch, sample, _PURPOSE + crop, _NUMBERS, sequence)
    strengths = np.array([settings.brightness, settings.contrast, settings.saturation, settings.hue])
    centres = np.array([1.0, 1.0, 1.0, 0.0])
    low = np.maximum(centres - strengths, [0.0, 0.0, 0.0, -0.5])
    return ColourDraws(
        draws[:, 0] < settings.jitter_p,
        draws[:, 9] < settings.grey_p,
        draws[:, 10] < settings.solarise_p[place],
        np.float32(low + (centres + strengths - low) * draws[:, 1:5]),
        draws[:, 5:9].argsort(axis=1, kind="stable"),
    )


def joined(every: Sequence[ColourDraws]) -> ColourDraws:
    """Return the draws of several calls, one after the other."""
    return ColourDraws(
        *(np.concatenate([getattr(each, field.name) for each in every]) for field in fields(ColourDraws))
    )


def apply(crops: torch.Tensor, drawn: ColourDraws) -> None:
    """Distort (N, 3, h, w) float32 crops in 0…1 in place."""
    factors = to_device_async(torch.from_numpy(drawn.factors), crops.device)
    for turn in range(4):
        for number, change in enumerate((brightness, contrast, saturation, hue)):
            places = np.flatnonzero(drawn.jitter & (drawn.order[:, turn] == number))
            if len(places):
                rows = to_device_async(torch.from_numpy(places), crops.device)
                crops[rows] = change(crops[rows], factors[rows, number].view(-1, 1, 1, 1))
    if drawn.grey.any():
        rows = to_device_async(torch.from_numpy(np.flatnonzero(drawn.grey)), crops.device)
        crops[rows] = _grey(crops[rows]).expand(-1, 3, -1, -1)
    if drawn.solarise.any():
        rows = to_device_async(torch.from_numpy(np.flatnonzero(drawn.solarise)), crops.device)
        values = crops[rows]
        crops[rows] = torch.where(values >= _THRESHOLD, 1 - values, values)


def brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return images times the factor, cut to 0…1. Images are (N, 3, h, w) here and below, factors (N, 1, 1, 1)."""
    return (images * factor).clamp_(0, 1)


def contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return images whose distance from their mean grey is multiplied by the factor, cut to 0…1."""
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blended(images, mean, factor)


def saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return images whose distance from their own grey is multiplied by the factor, cut to 0…1."""
    return _blended(images, _grey(images), factor)


def hue(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return images with their hue shifted; 1 is the whole circle. Grey pixels stay as they are."""
    most, least = images.amax(dim=1), images.amin(dim=1)
    extent = most - least
    span = torch.where(extent == 0, 1.0, extent)
    red, green, blue = ((most - channel) / span for channel in images.unbind(dim=1))
    is_red, is_green = images[:, 0] == most, images[:, 1] == most
    angle = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    angle = torch.where(extent == 0, 0.0, angle / 6) + shift.squeeze(1)
    sixth = torch.remainder(angle, 1.0) * 6
    # of a colour of this hue, a channel is the most less the extent times how far its hue is from the channel's own
    channels = []
    for centre in (5.0, 3.0, 1.0):
        place = torch.remainder(sixth + centre, 6.0)
        channels.append(most - extent * torch.minimum(place, 4 - place).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def _blended(images: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (images * factor + other * (1 - factor)).clamp_(0, 1)


def _grey(images: torch.Tensor) -> torch.Tensor:
    """(N, 1, h, w) luma."""
    red, green, blue = images.unbind(dim=1)
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]).unsqueeze(1)
