"""One step of self-distillation, from views and masks to named losses.

The teacher sees the two whole global crops; the student sees them with patches masked, and the
local crops. DINO compares cls tokens, iBOT masked patches, KoLeo spreads the cls tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pretrain.heads import ProjectionHead
from pretrain.losses import dino_loss, gram_loss, ibot_loss, koleo_loss, resize_patches, sinkhorn_targets
from pretrain.views import Views
from pretrain.vit import Features, VisionTransformer


class Model(nn.Module):
    """A backbone with its two heads: what student and teacher each are."""

    def __init__(self, backbone: VisionTransformer, dino_head: ProjectionHead, ibot_head: ProjectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head

    def init_weights(self, generator: torch.Generator) -> None:
        """Fresh weights for the three parts, drawn one after the other from `generator`."""
        for part in self.children():
            part.init_weights(generator)


@dataclass(frozen=True)
class StepWeights:
    """Weights and temperatures of one step. `gram` counts only where there are Gram crops and a Gram teacher."""

    teacher_temp: float
    student_temp: float = 0.1
    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    gram: float = 0.0
    sinkhorn_iterations: int = 3


def losses(
    student: Model,
    teacher: Model,
    views: Views,
    masks: torch.Tensor,
    weights: StepWeights,
    *,
    gram_teacher: VisionTransformer | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, torch.Tensor]:
    """The terms by name, unweighted, and their weighted sum `total`; `monitor/…` are not part of it.

    masks      (2·B, P) bool, all crops of global crop 0 first
    generator  draws of the student's drop path
    """
    global_crops = views.global_crops.flatten(0, 1)
    images, crops = views.global_crops.shape[1], len(views.local_crops)
    with torch.no_grad():
        seen = teacher.backbone(global_crops)
        cls_targets = _targets(teacher.dino_head(seen.cls), weights)
        patch_targets = _targets(teacher.ibot_head(seen.patches[masks]), weights)

    whole = student.backbone(global_crops, masks, generator=generator)
    local = student.backbone(views.local_crops.flatten(0, 1), local=True, generator=generator)
    cls_logits = student.dino_head(torch.cat([whole.cls, local.cls])).unflatten(0, (2 + crops, images))
    patch_logits = student.ibot_head(whole.patches[masks])
    cls_targets = cls_targets.unflatten(0, (2, images))
    with torch.autocast(global_crops.device.type, enabled=False):  # the terms are float32 throughout
        temperature = weights.student_temp
        terms = {
            "dino_global": dino_loss(cls_logits[:2], cls_targets, temperature, ignore_diagonal=True),
            "dino_local": dino_loss(cls_logits[2:], cls_targets, temperature),
            "ibot": ibot_loss(patch_logits, patch_targets, masks, temperature),
            "koleo": sum(koleo_loss(crop) for crop in whole.cls.chunk(2)) / 2,
        }
        if gram_teacher is not None:
            terms["gram"] = _gram(gram_teacher, views.gram_crops.flatten(0, 1), whole, global_crops)
    # each DINO term counts by its number of crop pairs: 2 of global crops, 2 · L with local ones
    pairs = 2 + 2 * crops
    dino = (2 * terms["dino_global"] + 2 * crops * terms["dino_local"]) / pairs
    total = weights.dino * dino + weights.ibot * terms["ibot"] + 2 * weights.koleo * terms["koleo"]
    if "gram" in terms:
        total = total + weights.gram * terms["gram"]
    return {**terms, "total": total, **_monitors(cls_targets.flatten(0, 1), seen.cls)}


def _targets(logits: torch.Tensor, weights: StepWeights) -> torch.Tensor:
    return sinkhorn_targets(logits, weights.teacher_temp, weights.sinkhorn_iterations)


def _gram(teacher: VisionTransformer, crops: torch.Tensor, student: Features, global_crops: torch.Tensor):
    """Gram anchoring of the student's patches to the Gram teacher's, brought to the student's grid."""
    patch = teacher.patch_size
    fine, coarse = ([side // patch for side in images.shape[-2:]] for images in (crops, global_crops))
    with torch.no_grad():
        anchor = resize_patches(teacher(crops).patches, *fine, to=tuple(coarse))
    return gram_loss(student.patches, anchor)


@torch.no_grad()
def _monitors(targets: torch.Tensor, cls: torch.Tensor) -> dict[str, torch.Tensor]:
    """Signs of collapse: entropy of the targets by ln K, share of prototypes in use, spread and rank of the features.

    The rank is the participation ratio of the covariance's eigenvalues, (Σλ)² / Σλ², by the largest it can be.
    """
    entropy = torch.special.entr(targets).sum(dim=-1).mean() / torch.log(torch.tensor(float(targets.shape[1])))
    used = torch.zeros(targets.shape[1], device=targets.device).scatter_(0, targets.argmax(dim=-1), 1.0).mean()
    spread = torch.nn.functional.normalize(cls.float(), dim=-1).std(dim=0).mean() * cls.shape[-1] ** 0.5
    centred = cls.float() - cls.float().mean(dim=0)
    products = centred @ centred.T  # has the covariance's eigenvalues
    rank = products.trace().square() / products.square().sum().clamp(min=1e-30) / min(len(cls) - 1, cls.shape[1])
    return {
        "monitor/target_entropy": entropy,
        "monitor/prototypes_used": used,
        "monitor/feature_spread": spread,
        "monitor/feature_rank": rank,
    }
