"""How the samples of a training are divided among its sources, by their weights and their sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def divide(
    names: Sequence[str], sizes: Sequence[int], weights: Sequence[float | None], temperature: float = 1.0
) -> np.ndarray:
    """Return the (K,) float64 share of the samples that each source has; they sum to 1.

    weights      where all sources have one, their ratios count; else each is the source's share, and those without
                 one (None) divide the rest by their sizes
    temperature  exponent of the sizes
    Raises ValueError, which names the sources, for weights that leave nothing to divide.
    """
    given = np.array([0.0 if weight is None else weight for weight in weights])
    free = np.array([weight is None for weight in weights])
    total = float(given.sum())
    if not free.any():
        if total <= 0:
            raise ValueError(f"the weights of {', '.join(names)} sum to 0; give one of them a weight above 0")
        return given / total
    if total >= 1:
        others = ", ".join(name for name, each in zip(names, free) if each)
        raise ValueError(
            f"the weights sum to {total:g}, which leaves nothing for {others}; give a weight there too, or less"
        )
    flat = np.where(free, np.array(sizes, np.float64) ** temperature, 0.0)
    return given + (1 - total) * flat / flat.sum()
