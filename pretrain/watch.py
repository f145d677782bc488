"""Signs of collapse, told once with their likely cause."""

from __future__ import annotations

from collections import deque

_STEPS = 200  # over which a sign must hold
_SIGNS = {
    "monitor/target_entropy": (
        lambda value: value > 0.995,
        "the teacher's targets stay uniform: the head has not left its start. Fewer prototypes, unit_norm_rows=true, "
        "more body in the crops (crops.min_body), or a larger learning rate",
    ),
    "monitor/feature_spread": (
        lambda value: value < 0.05,
        "all images have the same features: collapsed. A higher teacher momentum, a lower learning rate, or a lower "
        "teacher_temp at the start",
    ),
    "monitor/feature_rank": (
        lambda value: value < 0.02,
        "features lie along a few directions only. A larger loss.koleo, or a larger batch",
    ),
}


class Watch:
    """Looks at every row of the metrics; a sign that holds for 200 steps gives one line, once."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[bool]] = {name: deque(maxlen=_STEPS) for name in _SIGNS}
        self._told: set[str] = set()

    def look(self, row: dict) -> list[str]:
        """The warnings that this row completes."""
        lines = []
        for name, (bad, cause) in _SIGNS.items():
            if name not in row:
                continue
            seen = self._seen[name]
            seen.append(bad(row[name]))
            if name not in self._told and len(seen) == _STEPS and all(seen):
                self._told.add(name)
                lines.append(f"step {row['step']}: {name.removeprefix('monitor/')} {row[name]:.3f}: {cause}")
        return lines
