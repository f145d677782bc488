"""The projection head in front of the prototypes (DINO, arXiv 2104.14294, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ProjectionHead(nn.Module):
    """(…, D) features → (…, K) logits: MLP with GELU, L2 normalisation, prototypes without bias.

    unit_norm_rows  the prototypes are used with rows of unit norm (DINOv2's weight normalisation with
                    its gain fixed at 1). Free rows may shrink until every prototype is equally likely,
                    which few images or small batches do not undo.
    """

    def __init__(
        self, in_dim: int, *, prototypes: int, hidden_dim: int, bottleneck_dim: int, layers: int = 3,
        unit_norm_rows: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        parts: list[nn.Module] = []
        for narrow, wide in zip(widths, widths[1:]):
            parts += [nn.Linear(narrow, wide), nn.GELU()]
        self.mlp = nn.Sequential(*parts[:-1])
        self.last_layer = nn.Linear(bottleneck_dim, prototypes, bias=False)
        self.unit_norm_rows = unit_norm_rows

    def init_weights(self, generator: torch.Generator) -> None:
        """Truncated normal of 0.02, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # in float32: a norm under bf16 would lose the direction's last digits
        direction = F.normalize(self.mlp(features).float(), dim=-1, eps=1e-12)
        rows = self.last_layer.weight
        return F.linear(direction, F.normalize(rows.float(), dim=-1) if self.unit_norm_rows else rows)
