"""Values over the steps of a stage, and the numbers of a schedule that would not take effect."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def warmup_cosine(
    *, start: float, peak: float, end: float, warmup_steps: int, total_steps: int, cosine_steps: int | None = None
) -> np.ndarray:
    """Return (total_steps,) float64: linear from `start` to `peak`, half a cosine to `end`, then constant.

    The warm-up reaches `peak` on the first step after it; the cosine takes `cosine_steps` (by default all that are
    left) and reaches `end` on its last one. Raises ValueError where they take more steps than there are.
    """
    rest = total_steps - warmup_steps
    falling = rest if cosine_steps is None else cosine_steps
    if not 0 <= falling <= rest:
        raise ValueError(f"warmup_steps={warmup_steps} and cosine_steps={cosine_steps} in {total_steps} steps")
    warmup = np.linspace(start, peak, warmup_steps, endpoint=False)
    phase = np.linspace(0, 1, falling)
    cosine = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * phase))
    return np.concatenate([warmup, cosine, np.full(rest - falling, end)])


def fault(
    *,
    start: float | None,
    peak: float,
    end: float | None,
    warmup_steps: int,
    total_steps: int,
    cosine_steps: int | None,
) -> tuple[str, str] | None:
    """Return the number of a schedule that would not take effect in `total_steps`, and the remedy; None where all do.

    A warm-up or cosine that does not fit would have to be cut or squeezed, which changes every value of the stage.
    """
    steps = f"the stage has {total_steps} step{'s' * (total_steps != 1)}"
    if warmup_steps < 0:
        return "warmup_steps", "give 0 or more"
    if warmup_steps >= total_steps:
        return "warmup_steps", f"{steps}, so the peak is never reached; give fewer than {total_steps}, 0 for no warm-up"
    if not warmup_steps and start is not None and start != peak:
        return "start", f"without a warm-up it is never used; set warmup_steps, or leave start out (peak={peak:g})"
    if cosine_steps is not None and end is None:
        return "cosine_steps", "there is no end to fall or rise to; set end, or leave cosine_steps out"
    rest = total_steps - warmup_steps
    if cosine_steps is not None and not 2 <= cosine_steps <= rest:
        after = f" after {warmup_steps} of warm-up" * bool(warmup_steps)
        return "cosine_steps", f"{steps}{after}; give 2 to {rest}, or null for all that are left"
    if end is not None and end != peak and rest < 2:
        return "end", f"{steps}, so the end is never reached; leave end out or give the stage more steps"
    return None


def summary(values: np.ndarray) -> str:
    """Describe (steps,) values in a few words: the first, the peak and its step, the last."""
    first, last = values[0], values[-1]
    peak = int(np.argmax(values))
    if values.min() == values.max():
        return f"{first:.3g}"
    if values[peak] > max(first, last):
        return f"{first:.3g} → {values[peak]:.3g} at step {peak} → {last:.3g}"
    settled = int(np.argmax(values == last))
    at = f" at step {settled}" * (settled < len(values) - 1)
    return f"{first:.3g} → {last:.3g}{at}"


def described(values: Mapping[str, np.ndarray]) -> str:
    """Return a stage's schedules in one line: `summary` of each."""
    return ", ".join(f"{name} {summary(each)}" for name, each in values.items())
