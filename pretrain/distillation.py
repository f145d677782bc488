"""One training step of self-distillation, from views and masks to named losses and gradients.

The teacher, a moving average of the student, sees the two whole global crops of an image; the student sees them with
patches masked, and the local crops. Heads h map features to K prototypes. With the teacher's targets q and the
student's p = softmax(h_s(·) / τ_s), in this order (B images, L local crops, D channels):

    targets   q = softmax(h_t(·) / τ_t + scaling), of cls tokens (2, B, K) and of masked patches (M, K). The scaling is
              Sinkhorn-Knopp's over the batch of all ranks (SwAV, arXiv 2006.09882; DINOv2, DINOv3), or minus a moving
              centre divided by τ_t (DINO; MM-DINOv2)
    DINO      −Σ_k q_k log p_k of cls tokens: of a global crop against the other global crop's target, of a local crop
              against the mean of both (arXiv 2104.14294)
    iBOT      −Σ_k q_k log p_k of masked patches, each against the teacher's target of the same patch; the mean over a
              crop's masked patches, then over crops (arXiv 2111.07832)
    KoLeo     −log distance of each global cls token to its nearest neighbour in the batch (arXiv 1806.03198)
    Gram      ‖X_s X_sᵀ − X_g X_gᵀ‖² / P² of an image's normalised patches (P, D), student against an earlier teacher
              (DINOv3, arXiv 2508.10104, section 4)
    classes   cross-entropy with class labels: linear classifiers of cls tokens, or the DINO head's prototypes
              (MM-DINOv2)

    total = dino · DINO + ibot · iBOT + 2 koleo · KoLeo + gram · Gram + classes · classes

Read `benchmarks/plain_step.py` first: the same step as one writes it at first, on one page. Here no logits exist in
full (`objective/cross_entropy.py`), crops of all sizes go through the backbone together (`model/tokens.py`), and a
batch may be divided among ranks and micro-batches without changing its result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import cast

import torch
from torch import nn

from pretrain.data.masking import Masked
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.student_teacher import Model
from pretrain.model.tokens import Features, SelectedFeatures
from pretrain.model.vit import VisionTransformer
from pretrain.objective import koleo, monitors
from pretrain.objective.cross_entropy import LossAndTerms, Targets
from pretrain.objective.losses import (
    batch_class_weights,
    class_loss,
    gram_loss,
    prototype_class_loss,
    resize_patches,
)
from pretrain.objective.sinkhorn import Centring, SoftTargets, scalings
from pretrain.runtime.device import to_device_async
from pretrain.runtime.distributed import ALONE, World, without_averaging


@dataclass(frozen=True)
class StepWeights:
    """Weights and temperatures of one step. `gram` counts only where there are Gram crops and a Gram teacher.

    dino_local   further weight of the local crops' share of DINO
    koleo_group  consecutive images of the batch among which KoLeo seeks neighbours; None for all
    classes      of the classifiers' loss, the mean over label columns; class_weights, of the classes of each column
    class_temp   of the DINO head's logits where its prototypes are the classes, which are then weighted by their number
                 in the batch; None: linear classifiers, weighted by class_weights
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
    class_weights: Mapping[str, Sequence[float] | torch.Tensor] = field(default_factory=dict)
    class_temp: float | None = None
    gram: float = 0.0
    sinkhorn_iterations: int = 3


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's targets for a micro-batch: cls tokens of both global crops (2, B, K), masked patches (1, M, K).

    The patches are those at `Masked.places`.
    """

    cls: SoftTargets
    patches: SoftTargets


@torch.no_grad()
def teacher_targets(
    teacher: Model,
    batch: Sequence[MicroBatch],
    weights: StepWeights,
    world: World = ALONE,
    centring: Centring | None = None,
) -> tuple[list[TeacherTargets], dict[str, torch.Tensor]]:
    """Return the targets of each micro-batch, balanced over the whole batch of all ranks, and the monitors.

    Of several sources the monitors have this rank's sums, `sources/…`, which `backward` adds up.


    centring  the centres of both heads (DINO, iBOT), which are moved; None: Sinkhorn-Knopp
    """
    seen = [teacher.backbone.packed([each.teacher_crops()])[0] for each in batch]
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
    counts = [2 * sum(images) for images in zip(*(each.counts for each in batch))]
    tokens = torch.cat([each.cls for each in seen]) if len(seen) > 1 else seen[0].cls
    signs = monitors.collapse_signs([goal.cls for goal in goals], tokens, counts, world)
    if batch[0].views.sources:
        signs |= _moments(batch, seen)
    if batch[0].sequences > 1:
        lost = [(each.masked.lost, each.masked.sequence) for each in batch]
        signs |= monitors.sequence_marginal([goal.patches for goal in goals], lost, batch[0].sequences, world)
    return goals, signs


def losses(
    student: nn.Module,
    micro_batch: MicroBatch,
    goal: TeacherTargets,
    weights: StepWeights,
    gram_teacher: VisionTransformer | None = None,
    world: World = ALONE,
    known_koleo: koleo.KnownKoleo | None = None,
) -> dict[str, torch.Tensor]:
    """Return the terms by name, unweighted, and their weighted sum `total`: of this rank's images, KoLeo of all ranks'.

    student      a Model, or what wraps one
    known_koleo  KoLeo of the whole batch; None: of the micro-batch's images alone, of all ranks
    The total alone has a gradient. `sequences/…` as `lost_sequences` gives them, `sources/…` as `source_losses` does.
    """
    views, masked = micro_batch.views, micro_batch.masked
    groups = [micro_batch.masked_crops(all_patches=gram_teacher is not None)]  # Gram anchoring looks at all patches
    if len(views.local_crops):
        groups.append(micro_batch.local_crops())
    found: tuple[list[Features | SelectedFeatures], LossAndTerms, LossAndTerms, dict[str, torch.Tensor]]
    found = student(
        groups, masked.places, dino_targets(micro_batch, goal, weights), ibot_targets(masked, goal, weights)
    )
    (whole, *_), dino, ibot, class_logits = found
    with torch.autocast(ibot.loss.device.type, enabled=False):  # the terms are float32 throughout
        terms = {"dino_global": dino.terms[:2].mean()}
        if len(views.local_crops):
            terms["dino_local"] = dino.terms[2:].mean()
        terms["ibot"] = (ibot.terms * masked.share).sum()
        if known_koleo is None:
            terms["koleo"] = koleo.koleo(whole.cls, micro_batch.counts, weights.koleo_group, world)
        else:
            terms["koleo"] = known_koleo.term(whole.cls)
        total = dino.loss + ibot.loss + 2 * weights.koleo * terms["koleo"]
        if gram_teacher is not None:
            terms["gram"] = gram_term(gram_teacher, micro_batch, whole.patches)
            total = total + weights.gram * terms["gram"]
        if class_logits:
            assert views.labels is not None
            terms["classes"] = class_term(class_logits, views.labels, weights)
            total = total + weights.classes * terms["classes"]
        by_image = lost_sequences(micro_batch, ibot.terms) | source_losses(micro_batch, dino.terms, ibot.terms, weights)
    return {**terms, "total": total, **by_image}


def dino_targets(micro_batch: MicroBatch, goal: TeacherTargets, weights: StepWeights) -> Targets:
    """What the (2 + L, B) cls tokens of the student are compared with."""
    crops, device = len(micro_batch.views.local_crops), micro_batch.masked.share.device
    one, local = crop_weights(crops, weights)
    each = torch.cat([torch.full((2, 1), one, device=device), torch.full((crops, 1), local, device=device)])
    return Targets(goal.cls, _other_crops(crops, device), each / micro_batch.images, weights.student_temp)


def ibot_targets(masked: Masked, goal: TeacherTargets, weights: StepWeights) -> Targets:
    """What the M masked patches of the student are compared with."""
    alone = torch.ones(1, 1, device=masked.share.device)
    return Targets(goal.patches, alone, weights.ibot * masked.share.unsqueeze(0), weights.student_temp)


def crop_weights(crops: int, weights: StepWeights) -> tuple[float, float]:
    """Weights in the total of DINO's terms of one global crop and of one of `crops` local crops.

    Each kind counts by its number of crop pairs: 2 of global crops, which are not compared with themselves, 2 · L.
    """
    pairs = 2 + 2 * crops
    return weights.dino * 2 / pairs / 2, weights.dino * weights.dino_local * 2 / pairs


@lru_cache(maxsize=16)
def _other_crops(crops: int, device: torch.device) -> torch.Tensor:
    """(2 + L, 2) targets of a student's crop: of a global crop the other one's, of a local crop the mean of both."""
    return to_device_async(torch.tensor([[0.0, 1.0], [1.0, 0.0], *[[0.5, 0.5]] * crops]), device)


def gram_term(teacher: VisionTransformer, micro_batch: MicroBatch, student: torch.Tensor) -> torch.Tensor:
    """Gram anchoring of the student's (N, P, D) patches, each sequence by itself, to the Gram teacher's.

    The Gram teacher's patches, of finer crops, are resized to the student's grid. The mean is over a crop's sequences,
    then over crops, so that a batch may be divided where samples have different sequences.
    """
    crops, patch = micro_batch.gram_crops(), teacher.patch_size
    fine, coarse = (
        [side // patch for side in images.shape[-2:]] for images in (crops.images, micro_batch.views.global_crops)
    )
    with torch.no_grad():
        seen = teacher.packed([crops])[0]
        anchor = resize_patches(seen.patches, fine[0], fine[1], to=(coarse[0], coarse[1]))
    there = crops.present
    if there is None or bool(there.all()):
        return gram_loss(student, anchor)
    share = (1 / there.sum(dim=1, keepdim=True) / len(there)).expand(there.shape)[there]
    return gram_loss(student, anchor, to_device_async(share, student.device))


def class_term(logits: Mapping[str, torch.Tensor], labels: torch.Tensor, weights: StepWeights) -> torch.Tensor:
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
    return sum(terms[1:], terms[0]) / len(terms)


def lost_sequences(micro_batch: MicroBatch, terms: torch.Tensor) -> dict[str, torch.Tensor]:
    """iBOT on the patches of entirely masked sequences, and their number: sums by image, which micro-batches add up.

    terms  (1, M) iBOT's
    """
    if micro_batch.sequences == 1:
        return {}
    lost = micro_batch.masked.lost
    count = torch.full((), len(lost) / micro_batch.images, device=terms.device)
    return {"sequences/loss": terms[0, lost].sum() / micro_batch.images, "sequences/patches": count}


def source_losses(
    micro_batch: MicroBatch, dino: torch.Tensor, ibot: torch.Tensor, weights: StepWeights
) -> dict[str, torch.Tensor]:
    """DINO and iBOT, as they are weighted in the total, of each of several sources: sums by image, as above.

    dino (2 + L, B) and ibot (1, M) terms
    """
    names, source = micro_batch.views.sources, micro_batch.views.source
    if not names or source is None:
        return {}
    one, local = crop_weights(len(dino) - 2, weights)
    each = one * dino[:2].sum(dim=0) + local * dino[2:].sum(dim=0)
    of_patches = weights.ibot * micro_batch.images * ibot[0] * micro_batch.masked.share
    each = each.index_add(0, micro_batch.patch_image, of_patches.to(each.dtype)).double()
    rows = torch.stack([torch.ones_like(each), each], dim=1) / micro_batch.images
    return {"sources/losses": rows.new_zeros(len(names), 2).index_add_(0, source, rows)}


def _moments(batch: Sequence[MicroBatch], seen: Sequence[SelectedFeatures | Features]) -> dict[str, torch.Tensor]:
    """Moments of the teacher's cls tokens and masked patches of each source, of this rank's micro-batches."""
    found: dict[str, torch.Tensor] = {}
    for micro_batch, features in zip(batch, seen):
        source, count = micro_batch.views.source, len(micro_batch.views.sources)
        assert source is not None
        for name, tokens, owner in (
            ("sources/cls", features.cls, source.repeat(2)),
            ("sources/patches", features.patches, source[micro_batch.patch_image]),
        ):
            found[name] = found.get(name, 0) + monitors.moments(tokens, owner, count)
    return found


def backward(
    student: nn.Module,
    teacher: Model,
    batch: Sequence[MicroBatch],
    weights: StepWeights,
    *,
    gram_teacher: VisionTransformer | None = None,
    centring: Centring | None = None,
    precision: AbstractContextManager | None = None,
    world: World = ALONE,
) -> dict[str, torch.Tensor]:
    """Add the whole batch's gradients to the student's, one micro-batch at a time; return the terms of `losses`.

    Every loss but KoLeo is a mean over images; targets, and KoLeo where its groups span micro-batches, are made of the
    whole batch first, so micro-batches change nothing but memory and time. Each rank has its own images; a rank's terms
    count by its share of all images, times the ranks, so that the mean over ranks is the batch's, of gradients too.
    """
    precision = precision or nullcontext()
    weights = _with_class_weights(batch, weights, teacher, world)
    with precision:
        goals, signs = teacher_targets(teacher, batch, weights, world, centring)
        known = _koleo_of_batch(student, batch, weights, world)
    images = sum(sum(each.all_counts) for each in batch)
    sums: dict[str, torch.Tensor] = {}
    for micro_batch, goal, known_koleo in zip(batch, goals, known):
        share = micro_batch.images * world.size / images
        with without_averaging(student, micro_batch is not batch[-1]):
            with precision:
                found = losses(student, micro_batch, goal, weights, gram_teacher, world, known_koleo)
            (share * found["total"]).backward()
        for name, value in found.items():
            sums[name] = sums.get(name, 0) + share * value.detach()
    if batch[0].sequences > 1:
        entropy, patches = world.sum_(torch.stack([sums.pop("sequences/loss"), sums.pop("sequences/patches")]))
        if "sequences/marginal" in signs:
            signs["sequences/loss"] = entropy / patches
    if names := batch[0].views.sources:
        count, loss = (sums.pop("sources/losses") * (images / world.size)).unbind(dim=1)
        own = monitors.SourceSums(count, loss, signs.pop("sources/cls"), signs.pop("sources/patches"))
        signs |= monitors.of_sources(names, own, world)
    return {**sums, **signs}


def _koleo_of_batch(
    student: nn.Module, batch: Sequence[MicroBatch], weights: StepWeights, world: World
) -> Sequence[koleo.KnownKoleo | None]:
    """KoLeo of the whole batch for each micro-batch, from a first pass; None where none of its groups spans two.

    Without a weight KoLeo is only shown, and not worth a pass: neighbours are then sought within a micro-batch.
    """
    counts = [each.all_counts for each in batch]
    if not weights.koleo or not koleo.spans_micro_batches(counts, weights.koleo_group):
        return [None] * len(batch)
    model = cast(Model, getattr(student, "module", student))  # DDP's own forward pass would prepare for gradients
    # with gradients, whose graph goes with each micro-batch: without them attention and compiled blocks may round
    # otherwise
    crops = [each.masked_crops(patches=False) for each in batch]
    tokens = [model.backbone.packed([each])[0].cls.detach() for each in crops]
    with torch.autocast(tokens[0].device.type, enabled=False):
        return koleo.known_koleo(tokens, counts, weights.koleo_group, world)


def _with_class_weights(batch: Sequence[MicroBatch], weights: StepWeights, model: Model, world: World) -> StepWeights:
    """The weights, with those of classes that are prototypes by their numbers in the whole batch of all ranks."""
    if model.prototype_column is None:
        return weights
    labels = torch.cat([each.views.labels[:, :1] for each in batch if each.views.labels is not None])
    classes = torch.arange(model.dino_head.last_layer.out_features, device=labels.device)
    counts = (labels == classes).sum(dim=0).float()
    return replace(weights, class_weights={model.prototype_column: batch_class_weights(world.sum_(counts))})
