"""How stored values become the network's input: the same in pretraining and in every probe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

Level = float | tuple[float, ...]  # a number, or one for each channel


@dataclass(frozen=True)
class Intensity:
    """A window in HU, mapped to 0…1 and clipped, then standardised by `mean` and `std` of the windowed value.

    mean, std  a number; of a model of three channels three, of red, green and blue
    """

    window: tuple[float, float] = (-1000.0, 1000.0)
    mean: Level = 0.449
    std: Level = 0.226

    @property
    def means(self) -> tuple[float, ...]:
        """The mean of each channel."""
        return self.mean if isinstance(self.mean, tuple) else (self.mean,)

    @property
    def stds(self) -> tuple[float, ...]:
        """The standard deviation of each channel."""
        return self.std if isinstance(self.std, tuple) else (self.std,)

    @property
    def channels(self) -> int:
        """How many channels the input has."""
        return len(self.means)

    @property
    def black(self) -> float:
        """The input of values at the window's low end; of one channel."""
        return -self.means[0] / self.stds[0]

    def standardise(self, value: torch.Tensor) -> torch.Tensor:
        """Return the input of windowed values in 0…1; of C > 1 channels (…, S·C, h, w), a sequence's side by side."""
        if self.channels == 1:
            return (value - self.means[0]) / self.stds[0]
        count = value.shape[-3] // self.channels
        mean, std = (value.new_tensor(each).repeat(count).view(-1, 1, 1) for each in (self.means, self.stds))
        return (value - mean) / std

    def normalise(
        self,
        hu: torch.Tensor,
        low: torch.Tensor | None = None,
        width: torch.Tensor | None = None,
        *,
        gamma: torch.Tensor | None = None,
        clip: bool = True,
    ) -> torch.Tensor:
        """Return the float32 input of HU of any shape and type.

        low, width  replace the window's own
        gamma       exponent of the windowed value u before it is standardised; below 0, which only `clip` False leaves,
                    it is −(−u)^γ
        clip        cut the windowed value to 0…1; without it the map is affine where there is no gamma
        All of them broadcast.
        """
        start = self.window[0] if low is None else low
        extent = self.window[1] - self.window[0] if width is None else width
        value = (hu.float() - start) / extent
        if clip:
            value = value.clamp_(0, 1)
        if gamma is not None:
            value = value.abs().pow_(gamma).mul_(value.sign())
        return self.standardise(value)

    def normalise_into(
        self, out: np.ndarray, hu: np.ndarray, low: float, width: float, *, gamma: float = 1.0, clip: bool = True
    ) -> None:
        """Write the same of float32 HU, under one window, into `out`; of one channel, on the CPU."""
        own_mean, own_std = self.means[0], self.stds[0]
        mean, std = (own_mean, own_std) if gamma == 1 else (0.0, 1.0)  # of what the first affine map gives
        slope = 1 / (width * std)
        np.copyto(out, hu)
        np.multiply(out, np.float32(slope), out=out)
        np.add(out, np.float32(-low * slope - mean / std), out=out)
        if clip:
            np.clip(out, np.float32(-mean / std), np.float32((1 - mean) / std), out=out)
        if gamma != 1:
            np.copyto(out, np.sign(out) * np.abs(out) ** np.float32(gamma))
            np.multiply(out, np.float32(1 / own_std), out=out)
            np.add(out, np.float32(-own_mean / own_std), out=out)
