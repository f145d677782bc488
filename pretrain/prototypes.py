"""Logits of directions over prototypes, in bfloat16 without losing what tells the directions apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Prototypes:
    """Prototypes ready to be multiplied with.

    rows    (K, D) float32; narrow: the same in the type of the products, float32 or a lower one
    middle  (1, D) float32 that lies among the directions, and its logits `base` (1, K); None in float32
    """

    rows: torch.Tensor
    narrow: torch.Tensor
    middle: torch.Tensor | None = None
    base: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: torch.Tensor, directions: torch.Tensor) -> Prototypes:
        """(K, D) float32 for (…, D) float32 unit vectors; under autocast their products are made in its type.

        Early in training all directions are close, and rounding them would round their differences away: so only their
        distance to their middle is rounded, and the middle's own logits are float32.
        """
        kind = rows.device.type
        if not torch.is_autocast_enabled(kind) or not directions.numel():
            return cls(rows, rows)
        with torch.autocast(kind, enabled=False):
            middle = directions.flatten(0, -2).mean(dim=0, keepdim=True)
            return cls(rows, rows.to(torch.get_autocast_dtype(kind)), middle, middle @ rows.t())

    def logits(self, directions: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """(…, D) float32 directions → (…, K) float32, divided by the temperature."""
        with torch.autocast(self.rows.device.type, enabled=False):
            if self.middle is None:
                return (directions / temperature) @ self.rows.t()
            apart = ((directions - self.middle) / temperature).to(self.narrow.dtype)
            return torch.add(self.base / temperature, apart @ self.narrow.t())
