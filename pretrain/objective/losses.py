"""The losses of self-distillation beside its cross-entropies, on plain tensors, each computed in float32.

KoLeo (arXiv 1806.03198), Gram anchoring (DINOv3, arXiv 2508.10104, section 4), class labels. DINO's and iBOT's
cross-entropies are `pretrain/objective/cross_entropy.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_SAME = 1e-6  # distance of unit vectors below which they are one and the same


def koleo_loss(features: torch.Tensor, group: int | None = None, eps: float = 1e-8) -> torch.Tensor:
    """Minus the mean logarithm of the distance to the nearest neighbour, for (B, D) features.

    Spreads the batch over the sphere. Neighbours are sought among `group` consecutive samples, None for all. A sample
    without another in its group adds 0. Duplicates (two slices of air), nearer than rounding can tell, have the value
    that the reference gives equal ones, held finite by `eps`, and no gradient: theirs points nowhere and is a million
    times everyone else's.
    """
    directions = F.normalize(features.float(), dim=-1, eps=eps)
    size = max(len(features) if group is None else group, 1)
    return sum(_spread(part, eps) for part in directions.split(size)) / max(len(features), 1)


def _spread(directions: torch.Tensor, eps: float) -> torch.Tensor:
    """Sum over (B, D) directions of minus the log distance to the nearest other one."""
    if len(directions) < 2:
        return directions.sum() * 0
    with torch.no_grad():
        similarity = directions @ directions.T
        similarity.fill_diagonal_(-1)
        nearest = similarity.argmax(dim=1)
    distance = F.pairwise_distance(directions, directions[nearest], p=2, eps=eps)
    # the same whatever the rounding, and so on any number of ranks
    distance = torch.where(distance < _SAME, eps * directions.shape[1] ** 0.5, distance)
    return -torch.log(distance + eps).sum()


def marginal_entropy(sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Loss of a student that knows no more than how often each prototype is the target in each group.

    sums (G, K) of the targets of each group, counts (G,) of them; the mean over all targets.
    """
    entropy = torch.special.entr(sums / counts.clamp(min=1).unsqueeze(1)).sum(dim=1)
    return (entropy * counts).sum() / counts.sum()


def class_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy with smoothed labels where there are any, times the share of samples that have one.

    logits (N, K), labels (N,) int64 or −1 where unlabelled, weights (K,) of the classes. A sum over the labelled by the
    number of all, so that it is a mean over samples and parts of a batch add up.
    """
    known = labels >= 0
    target = labels.clamp(min=0)
    logarithms = F.log_softmax(logits.float(), dim=-1)
    right = logarithms.gather(1, target.unsqueeze(1)).squeeze(1)
    entropy = -(1 - smoothing) * right - smoothing * logarithms.mean(dim=-1)
    return (entropy * weights[target] * known).sum() / max(len(labels), 1)


def prototype_class_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, temperature: float, smoothing: float
) -> torch.Tensor:
    """MM-DINOv2's cross-entropy of the DINO head's prototypes, which are the classes.

    logits (N, K) of the head, labels (N,) int64 or −1 where unlabelled, weights (K,) of the classes. Every class of a
    smoothed label counts by its own weight. A sum over the labelled by the number of all, as `class_loss`.
    """
    known = labels >= 0
    target = F.one_hot(labels.clamp(min=0), logits.shape[1]).float()
    target = (1 - smoothing) * target + smoothing / logits.shape[1]
    entropy = -(weights * target * F.log_softmax(logits.float() / temperature, dim=-1)).sum(dim=-1)
    return (entropy * known).sum() / max(len(labels), 1)


def batch_class_weights(counts: torch.Tensor) -> torch.Tensor:
    """(K,) ln(N / n) of each class from its (K,) number n among the N labelled images of a batch (MM-DINOv2).

    A class that the batch lacks weighs ln(N / 1e-6), which counts through label smoothing alone; all are 0 where no
    image is labelled.
    """
    total = counts.sum()
    return torch.where(total > 0, (total / (counts + 1e-6)).clamp(min=1e-6).log(), 0.0)


def gram_loss(student: torch.Tensor, teacher: torch.Tensor, *, level: str = "image", remove_negatives: bool = False):
    """Mean squared difference of the patches' cosine similarities, student against Gram teacher.

    student, teacher (N, P, D). `level="image"` compares patches within an image, `"batch"` all with
    all. With `remove_negatives` negative similarities of both count as zero.
    Raises ValueError for another level.
    """
    if level not in ("image", "batch"):
        raise ValueError(f"level {level!r}: use image or batch")
    pair = [F.normalize(tokens.float(), dim=-1) for tokens in (student, teacher)]
    if level == "batch":
        pair = [tokens.flatten(0, 1) for tokens in pair]
    of_student, of_teacher = (tokens @ tokens.transpose(-1, -2) for tokens in pair)
    if remove_negatives:
        of_student, of_teacher = of_student.clamp(min=0), of_teacher.clamp(min=0)
    return F.mse_loss(of_student, of_teacher)


def resize_patches(tokens: torch.Tensor, rows: int, columns: int, to: tuple[int, int]) -> torch.Tensor:
    """(N, rows · columns, D) patch features, bicubic on their grid to (N, to[0] · to[1], D), not antialiased."""
    if (rows, columns) == to:
        return tokens
    square = tokens.transpose(1, 2).unflatten(2, (rows, columns)).float()
    return F.interpolate(square, size=to, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
