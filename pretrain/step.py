"""One step of self-distillation, from views and masks to named losses and gradients.

The teacher sees the two whole global crops; the student sees them with patches masked, and the
local crops. DINO compares cls tokens, iBOT masked patches, KoLeo spreads the cls tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from pretrain.distributed import ALONE, World, without_averaging
from pretrain.heads import ClassHeads, ProjectionHead
from pretrain.losses import (
    balanced_targets,
    class_loss,
    dino_loss,
    gram_loss,
    ibot_loss,
    koleo_loss,
    marginal_entropy,
    resize_patches,
)
from pretrain.presence import repeated
from pretrain.stochastic import Draws
from pretrain.views import Views
from pretrain.vit import Crops, Features, VisionTransformer


class Model(nn.Module):
    """A backbone with its two heads, and a classifier of each label column: what student and teacher each are."""

    def __init__(
        self,
        backbone: VisionTransformer,
        dino_head: ProjectionHead,
        ibot_head: ProjectionHead,
        class_heads: ClassHeads | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head
        if class_heads:
            self.class_heads = class_heads

    def forward(
        self, groups: Sequence[Crops], masks: torch.Tensor
    ) -> tuple[list[Features], torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """What a step asks of the student, in one call, so that what wraps a model sees all of it.

        Features of each group; (N, K) logits of all their cls tokens; (M, K) of the first group's masked patches; of
        the first group's cls tokens the logits of each label column.
        """
        found = self.backbone.packed(groups)
        cls = self.dino_head(torch.cat([each.cls for each in found]))
        classes = self.class_heads(found[0].cls) if hasattr(self, "class_heads") else {}
        return found, cls, self.ibot_head(found[0].at(masks)), classes

    def init_weights(self, generator: torch.Generator) -> None:
        """Fresh weights for all parts, drawn one after the other from `generator`."""
        for part in self.children():
            part.init_weights(generator)


@dataclass(frozen=True)
class StepWeights:
    """Weights and temperatures of one step. `gram` counts only where there are Gram crops and a Gram teacher.

    dino_local   further weight of the local crops' part of DINO
    koleo_group  images among which KoLeo seeks neighbours; None for all of a call
    classes      of the classifiers' loss, the mean over label columns; class_weights, of the classes of each column
    """

    teacher_temp: float
    student_temp: float = 0.1
    dino: float = 1.0
    dino_local: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    koleo_group: int | None = None
    classes: float = 0.5
    label_smoothing: float = 0.1
    class_weights: Mapping[str, Sequence[float]] = field(default_factory=dict)
    gram: float = 0.0
    sinkhorn_iterations: int = 3


@dataclass(frozen=True)
class Part:
    """Some images of a batch, or all of them, as the networks get them.

    masks   (2·B, S·P) bool, all crops of global crop 0 first
    counts  images that every rank has of this part, in the order of ranks; empty where there is one rank
    """

    views: Views
    masks: torch.Tensor
    draws: Draws = Draws()
    counts: tuple[int, ...] = ()

    @property
    def images(self) -> int:
        return self.views.global_crops.shape[1]

    @property
    def sequences(self) -> int:
        """How many sequences an image may have."""
        return max(len(self.views.sequences), 1)

    def crops(self, images: torch.Tensor, **more) -> Crops:
        """(2 or L, B, S, h, w) crops as a group for a network."""
        present = repeated(self.views.present, len(images))
        return Crops(images.flatten(0, 1), present=present, sequences=self.views.sequences, **more)


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
    if batch[0].sequences > 1:
        entropy, patches = world.sum_(torch.stack([sums.pop("sequences/loss"), sums.pop("sequences/patches")]))
        if "sequences/marginal" in monitors:
            monitors["sequences/loss"] = entropy / patches
    return {**sums, **monitors}


@torch.no_grad()
def targets(
    teacher: Model, batch: Sequence[Part], weights: StepWeights, world: World = ALONE
) -> tuple[list[Targets], dict[str, torch.Tensor]]:
    """The teacher's targets for each part, balanced over all parts of all ranks, and the monitors (`monitor/…`)."""
    seen = [teacher.backbone.packed([part.crops(part.views.global_crops)])[0] for part in batch]
    cls = [teacher.dino_head(each.cls) for each in seen]
    patches = [teacher.ibot_head(each.at(part.masks)) for part, each in zip(batch, seen)]
    logits = [torch.cat(cls), torch.cat(patches)]
    balanced = balanced_targets(logits, weights.teacher_temp, weights.sinkhorn_iterations, world)
    found = (whole.split([len(each) for each in of]) for whole, of in zip(balanced, (cls, patches)))
    goals = [Targets(one.unflatten(0, (2, -1)), other) for one, other in zip(*found)]
    counts = [2 * sum(images) for images in zip(*(part.counts for part in batch))]
    monitors = _monitors(balanced[0], torch.cat([each.cls for each in seen]), counts, world)
    if batch[0].sequences > 1:
        monitors |= _marginal(batch, balanced[1], world)
    return goals, monitors


def losses(
    student: Model,
    part: Part,
    goal: Targets,
    weights: StepWeights,
    gram_teacher: VisionTransformer | None = None,
    world: World = ALONE,
) -> dict[str, torch.Tensor]:
    """The terms by name, unweighted, and their weighted sum `total`: of this rank's images, KoLeo of all ranks'.

    `sequences/…` as `_of_lost` gives them.
    """
    views, draws = part.views, part.draws
    images, crops = part.images, len(views.local_crops)
    drop = draws.of_crops(slice(2)), draws.of_crops(slice(2, None))
    groups = [part.crops(views.global_crops, mask=part.masks, drop=drop[0], stretch=draws.stretch[0])]
    if crops:
        groups.append(part.crops(views.local_crops, local=True, drop=drop[1], stretch=draws.stretch[1]))
    (whole, *_), cls_logits, patch_logits, class_logits = student(groups, part.masks)
    cls_logits = cls_logits.unflatten(0, (2 + crops, images))
    with torch.autocast(cls_logits.device.type, enabled=False):  # the terms are float32 throughout
        temperature = weights.student_temp
        terms = {"dino_global": dino_loss(cls_logits[:2], goal.cls, temperature, ignore_diagonal=True)}
        if crops:
            terms["dino_local"] = dino_loss(cls_logits[2:], goal.cls, temperature)
        terms["ibot"] = ibot_loss(patch_logits, goal.patches, part.masks, temperature)
        everyone = [world.gather(crop, part.counts) for crop in whole.cls.chunk(2)]
        terms["koleo"] = sum(koleo_loss(crop, weights.koleo_group) for crop in everyone) / 2
        if gram_teacher is not None:
            terms["gram"] = _gram(gram_teacher, part, whole)
        if class_logits:
            terms["classes"] = _classes(class_logits, views.labels, weights)
        lost = _of_lost(part, patch_logits.detach(), goal.patches, temperature)
    return {**terms, "total": _total(terms, crops, weights), **lost}


def _total(terms: dict[str, torch.Tensor], crops: int, weights: StepWeights) -> torch.Tensor:
    # each DINO term counts by its number of crop pairs: 2 of global crops, 2 · L with local ones
    dino = 2 * terms["dino_global"] / (2 + 2 * crops)
    if crops:
        dino = dino + 2 * crops * weights.dino_local * terms["dino_local"] / (2 + 2 * crops)
    total = weights.dino * dino + weights.ibot * terms["ibot"] + 2 * weights.koleo * terms["koleo"]
    for name, weight in (("gram", weights.gram), ("classes", weights.classes)):
        total = total + weight * terms[name] if name in terms else total
    return total


def _gram(teacher: VisionTransformer, part: Part, student: Features) -> torch.Tensor:
    """Gram anchoring of the student's patches, each sequence by itself, to the Gram teacher's on the student's grid."""
    views, patch = part.views, teacher.patch_size
    fine, coarse = ([side // patch for side in images.shape[-2:]] for images in (views.gram_crops, views.global_crops))
    with torch.no_grad():
        seen = teacher.packed([part.crops(views.gram_crops)])[0]
        anchor = resize_patches(seen.patches, *fine, to=tuple(coarse))
    return gram_loss(student.patches, anchor)


def _classes(logits: dict[str, torch.Tensor], labels: torch.Tensor, weights: StepWeights) -> torch.Tensor:
    """Mean over label columns of the classifiers' loss; logits (2·B, classes) by column, labels (B, columns)."""
    terms = []
    for place, (column, each) in enumerate(logits.items()):
        balance = each.new_tensor(weights.class_weights[column])
        terms.append(class_loss(each, labels[:, place].repeat(2), balance, weights.label_smoothing))
    return sum(terms) / len(terms)


def _of_lost(part: Part, logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> dict[str, torch.Tensor]:
    """iBOT on the patches of entirely masked sequences and their number, both by image: sums that parts can add."""
    if part.sequences == 1:
        return {}
    lost, _ = _lost(part)
    entropy = -(targets[lost] * torch.log_softmax(logits[lost].float() / temperature, dim=-1)).sum()
    return {"sequences/loss": entropy / part.images, "sequences/patches": lost.sum().float() / part.images}


def _lost(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every masked patch, in the masks' row-major order: is its sequence masked entirely, and which one is it."""
    each = part.masks.unflatten(1, (part.sequences, -1))
    whole = each.all(dim=2, keepdim=True).expand_as(each)
    number = torch.arange(part.sequences, device=each.device).view(1, -1, 1).expand_as(each)
    return whole[each], number[each]


def _marginal(batch: Sequence[Part], targets: torch.Tensor, world: World) -> dict[str, torch.Tensor]:
    """`sequences/marginal` over the entirely masked sequences of all ranks; nothing where no sequence is."""
    lost, number = (torch.cat(each) for each in zip(*map(_lost, batch)))
    counted = torch.cat([targets[lost], targets.new_ones(int(lost.sum()), 1)], dim=1)
    sums = targets.new_zeros(batch[0].sequences, counted.shape[1]).index_add_(0, number[lost], counted)
    sums = world.sum_(sums)
    return {"sequences/marginal": marginal_entropy(sums[:, :-1], sums[:, -1])} if bool(sums[:, -1].any()) else {}


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
