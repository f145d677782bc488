"""What a step shows beside its losses: signs of collapse, and how much of an absent sequence a student could guess."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from pretrain.objective.losses import marginal_entropy
from pretrain.objective.sinkhorn import SoftTargets
from pretrain.runtime.distributed import ALONE, World


@torch.no_grad()
def collapse_signs(
    targets: Sequence[SoftTargets], cls: torch.Tensor, counts: Sequence[int], world: World = ALONE
) -> dict[str, torch.Tensor]:
    """Return `monitor/…`: entropy of the targets by ln K, share of prototypes in use, spread and rank of the features.

    targets  (T, n, K) of each micro-batch, from the (N, D) features `cls`, N = Σ T·n
    counts   rows of each rank; the signs are those of the rows of all ranks
    The rank is the participation ratio of the covariance's eigenvalues, (Σλ)² / Σλ², relative to its largest value.
    """
    prototypes = len(targets[0].scaling)
    own = torch.cat([_uncertainty(each) for each in targets])
    rows = world.gather(torch.cat([own, cls.float()], dim=1), counts)  # in one message
    entropy = rows[:, 0].mean() / math.log(prototypes)
    used = torch.zeros(prototypes, device=rows.device).scatter_(0, rows[:, 1].long(), 1.0).mean()
    cls = rows[:, 2:]
    spread = F.normalize(cls, dim=-1).std(dim=0).mean() * cls.shape[-1] ** 0.5
    centred = cls - cls.mean(dim=0)
    products = centred @ centred.T  # has the covariance's eigenvalues
    rank = products.trace().square() / products.square().sum().clamp(min=1e-30) / min(len(cls) - 1, cls.shape[1])
    return {
        "monitor/target_entropy": entropy,
        "monitor/prototypes_used": used,
        "monitor/feature_spread": spread,
        "monitor/feature_rank": rank,
    }


@dataclass(frozen=True)
class SourceSums:
    """Sums over images of each of K sources, which ranks and micro-batches add up.

    images   (K,) number of images, and loss (K,) the sum of their losses
    cls      (K, 2·D + 1) of the teacher's cls tokens as unit vectors: number, sum, sum of squares
    patches  (K, 2·D + 1) the same of its masked patches
    """

    images: torch.Tensor
    loss: torch.Tensor
    cls: torch.Tensor
    patches: torch.Tensor


def moments(tokens: torch.Tensor, source: torch.Tensor, sources: int) -> torch.Tensor:
    """Return (K, 2·D + 1) float64 number, sum and sum of squares of (N, D) tokens as unit vectors, by (N,) source."""
    unit = F.normalize(tokens.float(), dim=-1).double()
    rows = torch.cat([unit.new_ones(len(unit), 1), unit, unit.square()], dim=1)
    return rows.new_zeros(sources, rows.shape[1]).index_add_(0, source, rows)


def spread(moments: torch.Tensor) -> torch.Tensor:
    """Return (K,) spread of unit vectors as `collapse_signs` has it: 1 for random ones, 0 for equal ones.

    moments  (K, 2·D + 1) as the function of that name gives them; the spread of fewer than two is 0
    """
    count, total, squares = moments.split([1, *[moments.shape[1] // 2] * 2], dim=1)
    variance = (squares - total.square() / count.clamp(min=1)) / (count - 1).clamp(min=1)
    return variance.clamp(min=0).sqrt().mean(dim=1) * total.shape[1] ** 0.5


@torch.no_grad()
def of_sources(names: Sequence[str], own: SourceSums, world: World = ALONE) -> dict[str, torch.Tensor]:
    """Return `source/NAME/…` of the batch of all ranks, from this rank's sums: loss, spreads, and how many they are of.

    The numbers (images, patches) say which of them mean something.
    """
    table = torch.cat([own.images[:, None], own.loss[:, None], own.cls, own.patches], dim=1)
    images, loss, cls, patches = world.sum_(table).split([1, 1, own.cls.shape[1], own.patches.shape[1]], dim=1)
    columns = {
        "images": images[:, 0],
        "patches": patches[:, 0],
        "loss": (loss / images.clamp(min=1))[:, 0],
        "cls_spread": spread(cls),
        "patch_spread": spread(patches),
    }
    return {f"source/{name}/{key}": values[row] for row, name in enumerate(names) for key, values in columns.items()}


def _uncertainty(targets: SoftTargets) -> torch.Tensor:
    """(T · N, 2) entropy of each row, and its likeliest prototype."""
    found = []
    for some in targets.chunks():
        each = targets.rows(some)
        found.append(torch.stack([torch.special.entr(each).sum(dim=-1), each.argmax(dim=-1).float()], dim=-1))
    return torch.cat(found, dim=1).flatten(0, 1)


@torch.no_grad()
def sequence_marginal(
    targets: Sequence[SoftTargets],
    lost: Sequence[tuple[torch.Tensor, torch.Tensor]],
    sequences: int,
    world: World = ALONE,
) -> dict[str, torch.Tensor]:
    """Return `sequences/marginal` over the entirely masked sequences of all ranks; nothing where no sequence is.

    It is the loss of a student that knows no more than how often each prototype is the target in each sequence.

    targets  (1, M, K) of the masked patches of each micro-batch
    lost     of each: which of the M belong to entirely masked sequences, and of which of the `sequences` each is
    The device is asked whether there is any.
    """
    scaling = targets[0].scaling
    sums = scaling.new_zeros(sequences, len(scaling) + 1)
    for each, (places, sequence) in zip(targets, lost):
        of_lost = replace(each, logits=each.logits[:, places])
        for some in of_lost.chunks():
            probable = of_lost.rows(some)[0]
            sums.index_add_(0, sequence[some], torch.cat([probable, probable.new_ones(len(probable), 1)], dim=1))
    sums = world.sum_(sums)
    return {"sequences/marginal": marginal_entropy(sums[:, :-1], sums[:, -1])} if bool(sums[:, -1].any()) else {}
