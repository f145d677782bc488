"""How stored values become the network's input: the same in pretraining and in every probe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Intensity:
    """A window in HU, mapped to 0…1 and clipped, then standardised by `mean` and `std` of the windowed value."""

    window: tuple[float, float] = (-1000.0, 1000.0)
    mean: float = 0.449
    std: float = 0.226

    def normalise(self, hu: torch.Tensor, low: torch.Tensor | None = None, width: torch.Tensor | None = None):
        """HU of any shape and type → float32; `low` and `width` (broadcastable) replace the window's own."""
        low = self.window[0] if low is None else low
        width = self.window[1] - self.window[0] if width is None else width
        return (((hu.float() - low) / width).clamp_(0, 1) - self.mean) / self.std

    def normalise_into(self, out: np.ndarray, hu: np.ndarray, low: float, width: float) -> None:
        """The same of float32 HU under one window, on the CPU, into `out`."""
        slope = 1 / (width * self.std)
        np.copyto(out, hu)
        np.multiply(out, np.float32(slope), out=out)
        np.add(out, np.float32(-low * slope - self.mean / self.std), out=out)
        np.clip(out, np.float32(-self.mean / self.std), np.float32((1 - self.mean) / self.std), out=out)
