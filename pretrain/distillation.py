"""One step of self-distillation, from views and masks to named losses and gradients.

The teacher sees the two whole global crops; the student sees them with patches masked, and the
local crops. DINO compares cls tokens, iBOT masked patches, KoLeo spreads the cls tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import torch
from torch import nn

from pretrain.data.masking import Masked, masked
from pretrain.data.randomness import Draws
from pretrain.data.views import Views
from pretrain.model.heads import ClassHeads, ProjectionHead
from pretrain.model.tokens import Crops, Features, SelectedFeatures, repeated
from pretrain.model.vit import VisionTransformer
from pretrain.objective import koleo
from pretrain.objective.cross_entropy import LossAndTerms, Targets
from pretrain.objective.losses import (
    batch_class_weights,
    class_loss,
    gram_loss,
    marginal_entropy,
    prototype_class_loss,
    resize_patches,
)
from pretrain.objective.sinkhorn import Centring, SoftTargets, scalings
from pretrain.runtime.device import to_device_async
from pretrain.runtime.distributed import ALONE, World, without_averaging

_NO_PATCHES = torch.empty(0, dtype=torch.int64)


class Model(nn.Module):
    """A backbone with its heads: what student and teacher each are.

    ibot_head         of masked patches; None: they go through the DINO head (MM-DINOv2)
    class_heads       linear classifiers of label columns
    prototype_column  the label column whose classes are the DINO head's prototypes (MM-DINOv2), or None
    """

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
        return getattr(self, "ibot_head", self.dino_head)

    def forward(
        self, groups: Sequence[Crops], places: torch.Tensor, cls: Targets, patches: Targets
    ) -> tuple[list[Features | SelectedFeatures], LossAndTerms, LossAndTerms, dict[str, torch.Tensor]]:
        """What a step asks of the student, in one call, so that what wraps a model sees all of it.

        Features of each group; all their cls tokens compared with the teacher's, and the first group's patches at
        `places` (of Features.at; those that it asks for where it does); logits of each label column, of the first
        group's cls tokens, or of all where the DINO head's prototypes are the classes.
        """
        found = self.backbone.packed(groups)
        all_cls = torch.cat([each.cls for each in found])
        if self.prototype_column is None:
            dino = self.dino_head(all_cls, cls)
            classes = self.class_heads(found[0].cls) if hasattr(self, "class_heads") else {}
        else:
            dino, logits = self.dino_head(all_cls, cls, with_logits=True)
            classes = {self.prototype_column: logits}
        return found, dino, self.patch_head(_masked(found[0], places), patches), classes

    def init_weights(self, generator: torch.Generator) -> None:
        """Fresh weights for all parts, drawn one after the other from `generator`."""
        for part in self.children():
            part.init_weights(generator)


@dataclass(frozen=True)
class StepWeights:
    """Weights and temperatures of one step. `gram` counts only where there are Gram crops and a Gram teacher.

    dino_local   further weight of the local crops' part of DINO
    koleo_group  consecutive images of the batch among which KoLeo seeks neighbours; None for all
    classes      of the classifiers' loss, the mean over label columns; class_weights, of the classes of each column
    class_temp   of the DINO head's logits where its prototypes are the classes, which then weigh by their number in
                 the batch; None: linear classifiers, by class_weights
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
    class_temp: float | None = None
    gram: float = 0.0
    sinkhorn_iterations: int = 3


@dataclass(frozen=True)
class MicroBatch:
    """Some images of a batch, or all of them, as the networks get them.

    masks   (2·B, S·P) bool on the host, all crops of global crop 0 first
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

    @cached_property
    def masked(self) -> Masked:
        """The masks on the device of the crops, and which patches they are: known without asking the device."""
        present = repeated(self.views.present, 2)
        return masked(self.masks, present, self.sequences, self.views.global_crops.device)

    def crops(self, images: torch.Tensor, **more) -> Crops:
        """(2 or L, B, S, h, w) crops as a group for a network."""
        present = repeated(self.views.present, len(images))
        return Crops(images.flatten(0, 1), present=present, sequences=self.views.sequences, **more)

    def masked_crops(self, read_tokens: torch.Tensor | None) -> Crops:
        """The global crops as the student sees them; `read_tokens` as in Crops."""
        drop, rope_scale = self.draws.of_crops(slice(2)), self.draws.rope_scale[0]
        return self.crops(
            self.views.global_crops, mask=self.masked.patches, drop=drop, rope_scale=rope_scale, read_tokens=read_tokens
        )


@dataclass(frozen=True)
class TeacherTargets:
    """What the teacher says of a part: of both global crops' cls tokens (2, B, K), of its masked patches (1, M, K).

    The patches are those at `Masked.places`.
    """

    cls: SoftTargets
    patches: SoftTargets


def micro_batches(
    views: Views, masks: torch.Tensor, draws: Draws, counts: Sequence[tuple[int, ...]], rank: int = 0
) -> list[MicroBatch]:
    """A batch in parts, in their order; `counts` images of each part on every rank."""
    whole, start, found = masks.unflatten(0, (2, -1)), 0, []
    for each in counts:
        rows = slice(start, start + each[rank])
        found.append(MicroBatch(views.part(rows), whole[:, rows].flatten(0, 1), draws.part(rows), tuple(each)))
        start += each[rank]
    return found


def backward(
    student: Model,
    teacher: Model,
    batch: Sequence[MicroBatch],
    weights: StepWeights,
    *,
    gram_teacher: VisionTransformer | None = None,
    centring: Centring | None = None,
    precision: AbstractContextManager | None = None,
    world: World = ALONE,
) -> dict[str, torch.Tensor]:
    """Add the whole batch's gradients to the student's, one part at a time; the terms as `losses` names them.

    Every loss but KoLeo is a mean over images; targets, and KoLeo where its groups span parts, are made of the whole
    batch first, so that parts change nothing but memory and time. Of several ranks each has its images; a rank's terms
    count by its share of all images, times the ranks, so that the mean over ranks is the batch's, of gradients too.
    """
    precision = precision or nullcontext()
    weights = _balanced(batch, weights, teacher, world)
    with precision:
        goals, monitors = targets(teacher, batch, weights, world, centring)
        spreads = _spread_over_parts(student, batch, weights, world)
    images, sums = sum(sum(part.counts or (part.images,)) for part in batch), {}
    for part, goal, spread in zip(batch, goals, spreads):
        share = part.images * world.size / images
        with without_averaging(student, part is not batch[-1]):
            with precision:
                found = losses(student, part, goal, weights, gram_teacher, world, spread)
            (share * found["total"]).backward()
        for name, value in found.items():
            sums[name] = sums.get(name, 0) + share * value.detach()
    if batch[0].sequences > 1:
        entropy, patches = world.sum_(torch.stack([sums.pop("sequences/loss"), sums.pop("sequences/patches")]))
        if "sequences/marginal" in monitors:
            monitors["sequences/loss"] = entropy / patches
    return {**sums, **monitors}


def _spread_over_parts(
    student: nn.Module, batch: Sequence[MicroBatch], weights: StepWeights, world: World
) -> list[koleo.KnownKoleo | None]:
    """KoLeo of the whole batch for each part, from a first pass; None for each where none of its groups spans parts.

    Without a weight it is only shown, and not worth a pass: neighbours are then sought within a part.
    """
    counts = [part.counts or (part.images,) for part in batch]
    if not weights.koleo or not koleo.spans_micro_batches(counts, weights.koleo_group):
        return [None] * len(batch)
    backbone = getattr(student, "module", student).backbone  # DDP's own forward pass would prepare for gradients
    # with gradients, whose graph goes with each part: without them attention and compiled blocks may round otherwise
    tokens = [backbone.packed([part.masked_crops(_NO_PATCHES)])[0].cls.detach() for part in batch]
    with torch.autocast(tokens[0].device.type, enabled=False):
        return koleo.known_koleo(tokens, counts, weights.koleo_group, world)


@torch.no_grad()
def targets(
    teacher: Model,
    batch: Sequence[MicroBatch],
    weights: StepWeights,
    world: World = ALONE,
    centring: Centring | None = None,
) -> tuple[list[TeacherTargets], dict[str, torch.Tensor]]:
    """The teacher's targets for each part, balanced over all parts of all ranks, and the monitors (`monitor/…`).

    centring  the heads' centres (DINO, iBOT), which are moved; None: Sinkhorn-Knopp
    """
    crops = [part.crops(part.views.global_crops, read_tokens=part.masked.listed) for part in batch]
    seen = [teacher.backbone.packed([each])[0] for each in crops]
    cls = [teacher.dino_head(each.cls) for each in seen]
    patches = [teacher.patch_head(each.patches) for each in seen]
    temperature = weights.teacher_temp
    if centring is None:
        scaling = scalings([cls, patches], temperature, weights.sinkhorn_iterations, world)
    else:
        scaling = centring.scalings(temperature)
        centring.move([cls, patches], world)
    goals = [
        TeacherTargets(
            SoftTargets(of_cls.unflatten(0, (2, -1)), temperature, scaling[0]),
            SoftTargets(of_patches.unsqueeze(0), temperature, scaling[1]),
        )
        for of_cls, of_patches in zip(cls, patches)
    ]
    counts = [2 * sum(images) for images in zip(*(part.counts for part in batch))]
    monitors = _monitors([goal.cls for goal in goals], joined([each.cls for each in seen]), counts, world)
    if batch[0].sequences > 1:
        monitors |= _marginal(batch, [goal.patches for goal in goals], world)
    return goals, monitors


def _masked(found: Features | SelectedFeatures, places: torch.Tensor) -> torch.Tensor:
    """(M, D) the masked patches at `places`, which are those that were asked for if any were."""
    return found.patches if isinstance(found, SelectedFeatures) else found.at(places)


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rows of all parts; of one part itself, not a copy of it."""
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def losses(
    student: Model,
    part: MicroBatch,
    goal: TeacherTargets,
    weights: StepWeights,
    gram_teacher: VisionTransformer | None = None,
    world: World = ALONE,
    spread: koleo.KnownKoleo | None = None,
) -> dict[str, torch.Tensor]:
    """The terms by name, unweighted, and their weighted sum `total`: of this rank's images, KoLeo of all ranks'.

    spread  KoLeo of the whole batch; None: of the part's images alone, of all ranks
    The total alone has a gradient. `sequences/…` as `_of_lost` gives them.
    """
    views, draws = part.views, part.draws
    crops = len(views.local_crops)
    # Gram anchoring looks at all patches of global crops
    read_tokens = part.masked.listed if gram_teacher is None else None
    groups = [part.masked_crops(read_tokens)]
    if crops:
        local = {"local": True, "read_tokens": _NO_PATCHES, "drop": draws.of_crops(slice(2, None))}
        groups.append(part.crops(views.local_crops, rope_scale=draws.rope_scale[1], **local))
    comparisons = _comparisons(part, goal, weights)
    (whole, *_), dino, ibot, class_logits = student(groups, part.masked.places, *comparisons)
    with torch.autocast(ibot.loss.device.type, enabled=False):  # the terms are float32 throughout
        terms = {"dino_global": dino.terms[:2].mean()}
        if crops:
            terms["dino_local"] = dino.terms[2:].mean()
        terms["ibot"] = (ibot.terms * part.masked.share).sum()
        if spread is None:
            terms["koleo"] = koleo.koleo(whole.cls, part.counts, weights.koleo_group, world)
        else:
            terms["koleo"] = spread.term(whole.cls)
        total = dino.loss + ibot.loss + 2 * weights.koleo * terms["koleo"]
        if gram_teacher is not None:
            terms["gram"] = _gram(gram_teacher, part, whole)
            total = total + weights.gram * terms["gram"]
        if class_logits:
            terms["classes"] = _classes(class_logits, views.labels, weights)
            total = total + weights.classes * terms["classes"]
        lost = _of_lost(part, ibot.terms)
    return {**terms, "total": total, **lost}


def _comparisons(part: MicroBatch, goal: TeacherTargets, weights: StepWeights) -> tuple[Targets, Targets]:
    """What the student's cls tokens and its masked patches are compared with."""
    device = part.masked.share.device
    crops = len(part.views.local_crops)
    one, local = crop_weights(crops, weights)
    each = torch.cat([torch.full((2, 1), one, device=device), torch.full((crops, 1), local, device=device)])
    alone = torch.ones(1, 1, device=device)
    temperature = weights.student_temp
    return (
        Targets(goal.cls, _other_crops(crops, device), each / part.images, temperature),
        Targets(goal.patches, alone, weights.ibot * part.masked.share.unsqueeze(0), temperature),
    )


def crop_weights(crops: int, weights: StepWeights) -> tuple[float, float]:
    """What DINO's term of one global and of one of `crops` local crops weighs in the total.

    Each kind counts by its number of crop pairs: 2 of global crops, which are not compared with themselves, 2 · L.
    """
    pairs = 2 + 2 * crops
    return weights.dino * 2 / pairs / 2, weights.dino * weights.dino_local * 2 / pairs


@lru_cache(maxsize=16)
def _other_crops(crops: int, device: torch.device) -> torch.Tensor:
    """(2 + L, 2) what a student's crop is compared with: a global crop with the other one, a local crop with both."""
    return to_device_async(torch.tensor([[0.0, 1.0], [1.0, 0.0], *[[0.5, 0.5]] * crops]), device)


def _gram(teacher: VisionTransformer, part: MicroBatch, student: Features) -> torch.Tensor:
    """Gram anchoring of the student's patches, each sequence by itself, to the Gram teacher's on the student's grid."""
    views, patch = part.views, teacher.patch_size
    fine, coarse = ([side // patch for side in images.shape[-2:]] for images in (views.gram_crops, views.global_crops))
    with torch.no_grad():
        seen = teacher.packed([part.crops(views.gram_crops)])[0]
        anchor = resize_patches(seen.patches, *fine, to=tuple(coarse))
    return gram_loss(student.patches, anchor)


def _classes(logits: dict[str, torch.Tensor], labels: torch.Tensor, weights: StepWeights) -> torch.Tensor:
    """Mean over label columns of the classifiers' loss.

    logits by column, (C·B, classes) of C crops; labels (B, columns)
    """
    terms = []
    for place, (column, each) in enumerate(logits.items()):
        balance = to_device_async(torch.as_tensor(weights.class_weights[column]), each.device)
        mine = labels[:, place].repeat(len(each) // len(labels))
        if weights.class_temp is None:
            terms.append(class_loss(each, mine, balance, weights.label_smoothing))
        else:
            terms.append(prototype_class_loss(each, mine, balance, weights.class_temp, weights.label_smoothing))
    return sum(terms) / len(terms)


def _balanced(batch: Sequence[MicroBatch], weights: StepWeights, model: Model, world: World) -> StepWeights:
    """The weights, with those of classes that are prototypes by their numbers in the whole batch of all ranks."""
    if model.prototype_column is None:
        return weights
    classes = torch.arange(model.dino_head.last_layer.out_features, device=batch[0].views.labels.device)
    counts = sum((part.views.labels[:, :1] == classes).sum(dim=0) for part in batch).float()
    return replace(weights, class_weights={model.prototype_column: batch_class_weights(world.sum_(counts))})


def _of_lost(part: MicroBatch, terms: torch.Tensor) -> dict[str, torch.Tensor]:
    """iBOT on the patches of entirely masked sequences and their number, both by image: sums that parts can add."""
    if part.sequences == 1:
        return {}
    lost = part.masked.lost
    count = torch.full((), len(lost) / part.images, device=terms.device)
    return {"sequences/loss": terms[0, lost].sum() / part.images, "sequences/patches": count}


def _marginal(batch: Sequence[MicroBatch], goals: Sequence[SoftTargets], world: World) -> dict[str, torch.Tensor]:
    """`sequences/marginal` over the entirely masked sequences of all ranks; nothing where no sequence is."""
    scaling = goals[0].scaling
    sums = scaling.new_zeros(batch[0].sequences, len(scaling) + 1)
    for part, goal in zip(batch, goals):
        lost, number = part.masked.lost, part.masked.sequence
        of_lost = replace(goal, logits=goal.logits[:, lost])
        for some in of_lost.chunks():
            probable = of_lost.rows(some)[0]
            sums.index_add_(0, number[some], torch.cat([probable, probable.new_ones(len(probable), 1)], dim=1))
    sums = world.sum_(sums)
    return {"sequences/marginal": marginal_entropy(sums[:, :-1], sums[:, -1])} if bool(sums[:, -1].any()) else {}


@torch.no_grad()
def _monitors(
    targets: Sequence[SoftTargets], cls: torch.Tensor, counts: list[int], world: World
) -> dict[str, torch.Tensor]:
    """Signs of collapse: entropy of the targets by ln K, share of prototypes in use, spread and rank of the features.

    Of the rows of all ranks, `counts` of each. The rank is the participation ratio of the covariance's eigenvalues,
    (Σλ)² / Σλ², by the largest it can be.
    """
    prototypes = len(targets[0].scaling)
    own = torch.cat([_uncertainty(each) for each in targets])
    rows = world.gather(torch.cat([own, cls.float()], dim=1), counts)  # in one message
    entropy = rows[:, 0].mean() / math.log(prototypes)
    used = torch.zeros(prototypes, device=rows.device).scatter_(0, rows[:, 1].long(), 1.0).mean()
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


def _uncertainty(targets: SoftTargets) -> torch.Tensor:
    """(T · N, 2) entropy of each row, and its likeliest prototype."""
    found = []
    for some in targets.chunks():
        each = targets.rows(some)
        found.append(torch.stack([torch.special.entr(each).sum(dim=-1), each.argmax(dim=-1).float()], dim=-1))
    return torch.cat(found, dim=1).flatten(0, 1)
