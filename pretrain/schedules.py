"""Values over the steps of a stage."""

from __future__ import annotations

import numpy as np


def warmup_cosine(
    *, start: float, peak: float, end: float, warmup_steps: int, total_steps: int, cosine_steps: int | None = None
) -> np.ndarray:
    """(total_steps,) float64: linear from `start` to `peak`, half a cosine to `end`, then constant.

    The warm-up reaches `peak` on the first step after it; the cosine takes `cosine_steps` (by
    default all that are left) and stands at `end` on its last one. A warm-up longer than the
    run is cut at the run's end.
    """
    warmup_steps = min(warmup_steps, total_steps)
    rest = total_steps - warmup_steps
    falling = rest if cosine_steps is None else min(cosine_steps, rest)
    warmup = np.linspace(start, peak, warmup_steps, endpoint=False)
    phase = np.linspace(0, 1, falling)
    cosine = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * phase))
    return np.concatenate([warmup, cosine, np.full(rest - falling, end)])
