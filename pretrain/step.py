"""One step of self-distillation, from views and masks to named losses and gradients.

The teacher sees the two whole global crops; the student sees them with patches masked, and the
local crops. DINO compares cls tokens, iBOT masked patches, KoLeo spreads the cls tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from pretrain.heads import ProjectionHead
from pretrain.losses import dino_loss, gram_loss, ibot_loss, koleo_loss, resize_patches, sinkhorn_targets
from pretrain.stochastic import Draws
from pretrain.views import Views
from pretrain.vit import Crops, Features, VisionTransformer


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
    """Weights and temperatures of one step. `gram` counts only where there are Gram crops and a Gram teacher.

    dino_local   further weight of the local crops' part of DINO
    koleo_group  images among which KoLeo seeks neighbours; None for all of a call
    """

    teacher_temp: float
    student_temp: float = 0.1
    dino: float = 1.0
    dino_local: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    koleo_group: int | None = None
    gram: float = 0.0
    sinkhorn_iterations: int = 3


@dataclass(frozen=True)
class Part:
    """Some images of a batch, or all of them, as the networks get them.

    masks  (2·B, P) bool, all crops of global crop 0 first
    """

    views: Views
    masks: torch.Tensor
    draws: Draws = Draws()

    @property
    def images(self) -> int:
        return self.views.global_crops.shape[1]


@dataclass(frozen=True)
class Targets:
    """What the teacher says of a part: cls (2, B, K), patches (M, K) of the masked patches in row-major order."""

    cls: torch.Tensor
    patches: torch.Tensor


def parts(views: Views, masks: torch.Tensor, draws: Draws, sizes: Sequence[int]) -> list[Part]:
    """A batch in parts of `sizes` images, in their order."""
    whole, start, found = masks.unflatten(0, (2, -1)), 0, []
    for size in sizes:
        rows = slice(start, start + size)
        found.append(Part(views.part(rows), whole[:, rows].flatten(0, 1), draws.part(rows)))
        start += size
    return found


def gradients(
    student: Model,
    teacher: Model,
    batch: Sequence[Part],
    weights: StepWeights,
    *,
    gram_teacher: VisionTransformer | None = None,
    precision: AbstractContextManager = nullcontext(),
) -> dict[str, torch.Tensor]:
    """Add the whole batch's gradients to the student's, one part at a time; the terms as `losses` names them.

    Every loss is a mean over images and the targets are made of the whole batch first, so that parts change nothing
    but the memory, as long as none divides a group of KoLeo's.
    """
    with precision:
        goals, monitors = targets(teacher, batch, weights)
    images, sums = sum(part.images for part in batch), {}
    for part, goal in zip(batch, goals):
        share = part.images / images
        with precision:
            found = losses(student, part, goal, weights, gram_teacher)
        (share * found["total"]).backward()
        for name, value in found.items():
            sums[name] = sums.get(name, 0) + share * value.detach()
    return {**sums, **monitors}


@torch.no_grad()
def targets(
    teacher: Model, batch: Sequence[Part], weights: StepWeights
) -> tuple[list[Targets], dict[str, torch.Tensor]]:
    """The teacher's targets for each part, balanced over all of them, and the monitors (`monitor/…`)."""
    seen = [teacher.backbone(part.views.global_crops.flatten(0, 1)) for part in batch]
    cls = [teacher.dino_head(each.cls) for each in seen]
    patches = [teacher.ibot_head(each.patches[part.masks]) for part, each in zip(batch, seen)]
    balanced = _targets(torch.cat(cls), weights)
    found = zip(balanced.split([len(each) for each in cls]), _targets(torch.cat(patches), weights).split(
        [len(each) for each in patches]
    ))
    goals = [Targets(one.unflatten(0, (2, -1)), other) for one, other in found]
    return goals, _monitors(balanced, torch.cat([each.cls for each in seen]))


def losses(
    student: Model,
    part: Part,
    goal: Targets,
    weights: StepWeights,
    gram_teacher: VisionTransformer | None = None,
) -> dict[str, torch.Tensor]:
    """The terms by name, unweighted, and their weighted sum `total`."""
    views, draws = part.views, part.draws
    global_crops = views.global_crops.flatten(0, 1)
    images, crops = part.images, len(views.local_crops)
    groups = [Crops(global_crops, part.masks, False, draws.of_crops(slice(2)), draws.stretch[0])]
    if crops:
        small = views.local_crops.flatten(0, 1)
        groups.append(Crops(small, None, True, draws.of_crops(slice(2, None)), draws.stretch[1]))
    whole, *local = student.backbone.packed(groups)
    cls = torch.cat([whole.cls, *(each.cls for each in local)])
    cls_logits = student.dino_head(cls).unflatten(0, (2 + crops, images))
    patch_logits = student.ibot_head(whole.patches[part.masks])
    with torch.autocast(global_crops.device.type, enabled=False):  # the terms are float32 throughout
        temperature = weights.student_temp
        terms = {"dino_global": dino_loss(cls_logits[:2], goal.cls, temperature, ignore_diagonal=True)}
        if crops:
            terms["dino_local"] = dino_loss(cls_logits[2:], goal.cls, temperature)
        terms["ibot"] = ibot_loss(patch_logits, goal.patches, part.masks, temperature)
        terms["koleo"] = sum(koleo_loss(crop, weights.koleo_group) for crop in whole.cls.chunk(2)) / 2
        if gram_teacher is not None:
            terms["gram"] = _gram(gram_teacher, views.gram_crops.flatten(0, 1), whole, global_crops)
    return {**terms, "total": _total(terms, crops, weights)}


def _total(terms: dict[str, torch.Tensor], crops: int, weights: StepWeights) -> torch.Tensor:
    # each DINO term counts by its number of crop pairs: 2 of global crops, 2 · L with local ones
    dino = 2 * terms["dino_global"] / (2 + 2 * crops)
    if crops:
        dino = dino + 2 * crops * weights.dino_local * terms["dino_local"] / (2 + 2 * crops)
    total = weights.dino * dino + weights.ibot * terms["ibot"] + 2 * weights.koleo * terms["koleo"]
    return total + weights.gram * terms["gram"] if "gram" in terms else total


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
