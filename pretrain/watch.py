"""Signs of a run that learns nothing or collapses, each reported once with its likely cause."""

from __future__ import annotations

from collections import deque

# by name in the metrics: over how many steps it must hold, what is bad, and the likely cause
_SIGNS = {
    "lr": (
        100,
        lambda value: value == 0,
        "the learning rate is 0 and nothing is learned. A warm-up or cosine that ends above 0 (stages.*.optim.lr), or "
        "fewer steps",
    ),
    "monitor/target_entropy": (
        200,
        lambda value: value > 0.995,
        "the teacher's targets stay uniform: the head has not left its start. Fewer prototypes, unit_norm_rows=true, "
        "more body in the crops (crops.min_body), or a larger learning rate",
    ),
    "monitor/feature_spread": (
        200,
        lambda value: value < 0.05,
        "all images have the same features: collapsed. A higher teacher momentum, a lower learning rate, or a lower "
        "teacher_temp at the start",
    ),
    "monitor/feature_rank": (
        200,
        lambda value: value < 0.02,
        "features lie along a few directions only. A larger loss.koleo, or a larger batch",
    ),
}


class Watch:
    """Looks at every row of the metrics; a sign that holds for its number of steps gives one line, once."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[bool]] = {name: deque(maxlen=steps) for name, (steps, *_) in _SIGNS.items()}
        self._told: set[str] = set()

    def look(self, row: dict) -> list[str]:
        """The warnings that this row completes."""
        lines = []
        for name, (steps, bad, cause) in _SIGNS.items():
            if name not in row:
                continue
            seen = self._seen[name]
            seen.append(bad(row[name]))
            if name not in self._told and len(seen) == steps and all(seen):
                self._told.add(name)
                lines.append(f"step {row['step']}: {name.removeprefix('monitor/')} {row[name]:.3f}: {cause}")
        return lines
