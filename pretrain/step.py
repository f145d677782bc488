"""One step of self-distillation, from views and masks to named losses and gradients.

The teacher sees the two whole global crops; the student sees them with patches masked, and the
local crops. DINO compares cls tokens, iBOT masked patches, KoLeo spreads the cls tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from pretrain.distributed import ALONE, World, without_averaging
from pretrain.heads import ProjectionHead
from pretrain.losses import balanced_targets, dino_loss, gram_loss, ibot_loss, koleo_loss, resize_patches
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

    def forward(
        self, groups: Sequence[Crops], masks: torch.Tensor
    ) -> tuple[list[Features], torch.Tensor, torch.Tensor]:
        """What a step asks of the student, in one call, so that what wraps a model sees all of it.

        Features of each group; (N, K) logits of all their cls tokens; (M, K) of the first group's masked patches.
        """
        found = self.backbone.packed(groups)
        cls = self.dino_head(torch.cat([each.cls for each in found]))
        return found, cls, self.ibot_head(found[0].patches[masks])

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

    masks   (2·B, P) bool, all crops of global crop 0 first
    counts  images that every rank has of this part, in the order of ranks; empty where there is one rank
    """

    views: Views
    masks: torch.Tensor
    draws: Draws = Draws()
    counts: tuple[int, ...] = ()

    @property
    def images(self) -> int:
        return self.views.global_crops.shape[1]


@dataclass(frozen=True)
class Targets:
    """What the teacher says of a part: cls (2, B, K), patches (M, K) of the masked patches in row-major order."""

    cls: torch.Tensor
    patches: torch.Tensor


def parts(
    views: Views, masks: torch.Tensor, draws: Draws, counts: Sequence[tuple[int, ...]], rank: int = 0
) -> list[Part]:
    """A batch in parts, in their order; `counts` images of each part on every rank."""
    whole, start, found = masks.unflatten(0, (2, -1)), 0, []
    for each in counts:
        rows = slice(start, start + each[rank])
        found.append(Part(views.part(rows), whole[:, rows].flatten(0, 1), draws.part(rows), tuple(each)))
        start += each[rank]
    return found


def gradients(
    student: Model,
    teacher: Model,
    batch: Sequence[Part],
    weights: StepWeights,
    *,
    gram_teacher: VisionTransformer | None = None,
    precision: AbstractContextManager = nullcontext(),
    world: World = ALONE,
) -> dict[str, torch.Tensor]:
    """Add the whole batch's gradients to the student's, one part at a time; the terms as `losses` names them.

    Every loss is a mean over images and the targets are made of the whole batch first, so that parts change nothing
    but the memory, as long as none divides a group of KoLeo's. Of several ranks each has its images; a rank's terms
    count by its share of all images, times the ranks, so that the mean over ranks is the batch's, of gradients too.
    """
    with precision:
        goals, monitors = targets(teacher, batch, weights, world)
    images, sums = sum(sum(part.counts or (part.images,)) for part in batch), {}
    for part, goal in zip(batch, goals):
        share = part.images * world.size / images
        with without_averaging(student, part is not batch[-1]):
            with precision:
                found = losses(student, part, goal, weights, gram_teacher, world)
            (share * found["total"]).backward()
        for name, value in found.items():
            sums[name] = sums.get(name, 0) + share * value.detach()
    return {**sums, **monitors}


@torch.no_grad()
def targets(
    teacher: Model, batch: Sequence[Part], weights: StepWeights, world: World = ALONE
) -> tuple[list[Targets], dict[str, torch.Tensor]]:
    """The teacher's targets for each part, balanced over all parts of all ranks, and the monitors (`monitor/…`)."""
    seen = [teacher.backbone(part.views.global_crops.flatten(0, 1)) for part in batch]
    cls = [teacher.dino_head(each.cls) for each in seen]
    patches = [teacher.ibot_head(each.patches[part.masks]) for part, each in zip(batch, seen)]
    logits = [torch.cat(cls), torch.cat(patches)]
    balanced = balanced_targets(logits, weights.teacher_temp, weights.sinkhorn_iterations, world)
    found = (whole.split([len(each) for each in of]) for whole, of in zip(balanced, (cls, patches)))
    goals = [Targets(one.unflatten(0, (2, -1)), other) for one, other in zip(*found)]
    counts = [2 * sum(images) for images in zip(*(part.counts for part in batch))]
    return goals, _monitors(balanced[0], torch.cat([each.cls for each in seen]), counts, world)


def losses(
    student: Model,
    part: Part,
    goal: Targets,
    weights: StepWeights,
    gram_teacher: VisionTransformer | None = None,
    world: World = ALONE,
) -> dict[str, torch.Tensor]:
    """The terms by name, unweighted, and their weighted sum `total`: of this rank's images, KoLeo of all ranks'."""
    views, draws = part.views, part.draws
    global_crops = views.global_crops.flatten(0, 1)
    images, crops = part.images, len(views.local_crops)
    groups = [Crops(global_crops, part.masks, False, draws.of_crops(slice(2)), draws.stretch[0])]
    if crops:
        small = views.local_crops.flatten(0, 1)
        groups.append(Crops(small, None, True, draws.of_crops(slice(2, None)), draws.stretch[1]))
    (whole, *_), cls_logits, patch_logits = student(groups, part.masks)
    cls_logits = cls_logits.unflatten(0, (2 + crops, images))
    with torch.autocast(global_crops.device.type, enabled=False):  # the terms are float32 throughout
        temperature = weights.student_temp
        terms = {"dino_global": dino_loss(cls_logits[:2], goal.cls, temperature, ignore_diagonal=True)}
        if crops:
            terms["dino_local"] = dino_loss(cls_logits[2:], goal.cls, temperature)
        terms["ibot"] = ibot_loss(patch_logits, goal.patches, part.masks, temperature)
        everyone = [world.gather(crop, part.counts) for crop in whole.cls.chunk(2)]
        terms["koleo"] = sum(koleo_loss(crop, weights.koleo_group) for crop in everyone) / 2
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


def _gram(teacher: VisionTransformer, crops: torch.Tensor, student: Features, global_crops: torch.Tensor):
    """Gram anchoring of the student's patches to the Gram teacher's, brought to the student's grid."""
    patch = teacher.patch_size
    fine, coarse = ([side // patch for side in images.shape[-2:]] for images in (crops, global_crops))
    with torch.no_grad():
        anchor = resize_patches(teacher(crops).patches, *fine, to=tuple(coarse))
    return gram_loss(student.patches, anchor)


@torch.no_grad()
def _monitors(targets: torch.Tensor, cls: torch.Tensor, counts: list[int], world: World) -> dict[str, torch.Tensor]:
    """Signs of collapse: entropy of the targets by ln K, share of prototypes in use, spread and rank of the features.

    Of the rows of all ranks, `counts` of each. The rank is the participation ratio of the covariance's eigenvalues,
    (Σλ)² / Σλ², by the largest it can be.
    """
    prototypes = targets.shape[1]
    own = torch.stack([torch.special.entr(targets).sum(dim=-1), targets.argmax(dim=-1).float()], dim=1)
    rows = world.gather(torch.cat([own, cls.float()], dim=1), counts)  # in one message
    entropy = rows[:, 0].mean() / math.log(prototypes)
    used = torch.zeros(prototypes, device=targets.device).scatter_(0, rows[:, 1].long(), 1.0).mean()
    cls = rows[:, 2:]
    spread = torch.nn.functional.normalize(cls, dim=-1).std(dim=0).mean() * cls.shape[-1] ** 0.5
    centred = cls - cls.mean(dim=0)
    products = centred @ centred.T  # has the covariance's eigenvalues
    rank = products.trace().square() / products.square().sum().clamp(min=1e-30) / min(len(cls) - 1, cls.shape[1])
    return {
        "monitor/target_entropy": entropy,
        "monitor/prototypes_used": used,
        "monitor/feature_spread": spread,
        "monitor/feature_rank": rank,
    }
