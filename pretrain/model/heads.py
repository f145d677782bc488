"""The projection head in front of the prototypes (DINO, arXiv 2104.14294, section 3), and classifiers of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.model.layers import init_linear
from pretrain.objective.cross_entropy import LossAndTerms, Prototypes, Targets, cross_entropy


class ProjectionHead(nn.Module):
    """(…, D) features → (…, K) logits: MLP with GELU, L2 normalisation, prototypes without bias.

    unit_norm_rows  the prototypes are used with rows of unit norm (DINOv2's weight normalisation with
                    its gain fixed at 1). Free rows may shrink until every prototype is equally likely,
                    which few images or small batches do not undo.
    learned_gain    rows of unit norm are multiplied by a factor each, which starts at 1 and is learned (DINOv2)
    Raises ValueError for a learned gain without rows of unit norm.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        prototypes: int,
        hidden_dim: int,
        bottleneck_dim: int,
        layers: int = 3,
        unit_norm_rows: bool = False,
        learned_gain: bool = False,
    ) -> None:
        super().__init__()
        if learned_gain and not unit_norm_rows:
            raise ValueError("learned_gain=true needs unit_norm_rows=true")
        widths = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        parts: list[nn.Module] = []
        for narrow, wide in zip(widths, widths[1:]):
            parts += [nn.Linear(narrow, wide), nn.GELU()]
        self.mlp = nn.Sequential(*parts[:-1])
        self.last_layer = nn.Linear(bottleneck_dim, prototypes, bias=False)
        self.last_layer_gain = nn.Parameter(torch.ones(prototypes, 1)) if learned_gain else None
        self.unit_norm_rows = unit_norm_rows

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw fresh weights; see `init_linear`."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, generator)
        if self.last_layer_gain is not None:
            nn.init.ones_(self.last_layer_gain)

    def forward(
        self, features: torch.Tensor, targets: Targets | None = None, with_logits: bool = False
    ) -> torch.Tensor | LossAndTerms | tuple[LossAndTerms, torch.Tensor]:
        """Return the logits; with `targets` the cross-entropy with them instead; `with_logits` both."""
        bottleneck = self.mlp(features)
        rows = self.last_layer.weight
        if self.unit_norm_rows:
            rows = F.normalize(rows, dim=-1)
        if self.last_layer_gain is not None:
            rows = rows * self.last_layer_gain
        directions = F.normalize(bottleneck.float(), dim=-1, eps=1e-12)
        if targets is None:
            return Prototypes.of(rows, directions).logits(directions)
        loss = cross_entropy(directions, rows, targets)
        return (loss, Prototypes.of(rows, directions).logits(directions)) if with_logits else loss


class ClassHeads(nn.ModuleDict):
    """A linear classifier of the cls token for each label column: (…, D) → column → (…, classes) logits, float32."""

    def __init__(self, in_dim: int, classes: Mapping[str, int]) -> None:
        super().__init__({column: nn.Linear(in_dim, count) for column, count in classes.items()})

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw fresh weights; see `init_linear`."""
        for head in self.values():
            init_linear(cast(nn.Linear, head), generator)

    def forward(self, cls: torch.Tensor) -> dict[str, torch.Tensor]:
        return {column: head(cls).float() for column, head in self.items()}
