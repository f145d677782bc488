"""What student and teacher each are: a backbone with its heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pretrain.model.heads import ClassHeads, ProjectionHead
from pretrain.model.tokens import Crops, Features, SelectedFeatures
from pretrain.model.vit import VisionTransformer
from pretrain.objective.cross_entropy import LossAndTerms, Targets


class Model(nn.Module):
    """A backbone with its heads.

    ibot_head         head of masked patches; None: they go through the DINO head (MM-DINOv2)
    class_heads       linear classifiers of label columns
    prototype_column  the label column whose classes are the DINO head's prototypes (MM-DINOv2), or None
    """

    ibot_head: ProjectionHead
    class_heads: ClassHeads

    def __init__(
        self,
        backbone: VisionTransformer,
        dino_head: ProjectionHead,
        ibot_head: ProjectionHead | None,
        class_heads: ClassHeads | None = None,
        prototype_column: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        if ibot_head is not None:
            self.ibot_head = ibot_head
        if class_heads:
            self.class_heads = class_heads
        self.prototype_column = prototype_column

    @property
    def patch_head(self) -> ProjectionHead:
        """The head of masked patches."""
        return self.ibot_head if hasattr(self, "ibot_head") else self.dino_head

    def forward(
        self, groups: Sequence[Crops], places: torch.Tensor, cls: Targets, patches: Targets
    ) -> tuple[list[Features | SelectedFeatures], LossAndTerms, LossAndTerms, dict[str, torch.Tensor]]:
        """Return all that a step needs of the student, in one call, so that a wrapper (DDP) sees all of it.

        Features of each group; DINO's cross-entropy of all their cls tokens with `cls`; iBOT's of the first group's
        masked patches with `patches`; logits of each label column, of the first group's cls tokens, or of all cls
        tokens where the DINO head's prototypes are the classes.

        places  (M,) int64 of the masked patches in `Features.at`; unused where the first group reads these alone
        """
        found = self.backbone.packed(groups)
        all_cls = torch.cat([each.cls for each in found])
        dino: LossAndTerms
        classes: dict[str, torch.Tensor] = {}
        if self.prototype_column is not None:
            dino, classes[self.prototype_column] = self.dino_head(all_cls, cls, with_logits=True)
        else:
            dino = self.dino_head(all_cls, cls)
            if hasattr(self, "class_heads"):
                classes = self.class_heads(found[0].cls)
        ibot: LossAndTerms = self.patch_head(_masked(found[0], places), patches)
        return found, dino, ibot, classes

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw fresh weights for backbone and heads, one after the other, from `generator`."""
        for part in (self.backbone, self.dino_head):
            part.init_weights(generator)
        if hasattr(self, "ibot_head"):
            self.ibot_head.init_weights(generator)
        if hasattr(self, "class_heads"):
            self.class_heads.init_weights(generator)


def _masked(found: Features | SelectedFeatures, places: torch.Tensor) -> torch.Tensor:
    """(M, D) features of the masked patches."""
    return found.patches if isinstance(found, SelectedFeatures) else found.at(places)
