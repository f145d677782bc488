"""KoLeo, Gram anchoring and class losses, on plain tensors, each computed in float32.

KoLeo (arXiv 1806.03198), Gram anchoring (DINOv3, arXiv 2508.10104, section 4), class labels. DINO's and iBOT's
cross-entropies are `pretrain/objective/cross_entropy.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_SAME = 1e-6  # distance of unit vectors below which they are one and the same


def koleo_loss(features: torch.Tensor, group: int | None = None, eps: float = 1e-8) -> torch.Tensor:
    """Return minus the mean logarithm of the distance to the nearest neighbour, for (B, D) features.

    Spreads the batch over the sphere. Neighbours are sought among `group` consecutive samples, None for all. A sample
    alone in its group adds 0. Duplicates (two slices of air), closer than rounding can tell, have the value that the
    reference gives equal ones, kept finite by `eps`, and no gradient: theirs has no meaningful direction and is a
    million times everyone else's.
    """
    directions = F.normalize(features.float(), dim=-1, eps=eps)
    size = max(len(features) if group is None else group, 1)
    sums = [_spread(part, eps) for part in directions.split(size)]
    return sum(sums[1:], sums[0]) / max(len(features), 1)


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
    """Return the loss of a student that knows only how often each prototype is the target in each group.

    sums (G, K) of the targets of each group, counts (G,) of targets; the mean over all targets.
    """
    entropy = torch.special.entr(sums / counts.clamp(min=1).unsqueeze(1)).sum(dim=1)
    return (entropy * counts).sum() / counts.sum()


def class_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the cross-entropy with smoothed labels, times the share of samples that have one.

    logits (N, K), labels (N,) int64 or −1 where unlabelled, weights (K,) of the classes. The sum over labelled samples
    is divided by the number of all, so it is a mean over samples and micro-batches add up.
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
    """Return MM-DINOv2's cross-entropy of the DINO head's prototypes, which are the classes.

    logits (N, K) of the head, labels (N,) int64 or −1 where unlabelled, weights (K,) of the classes. Every class of a
    smoothed label counts by its own weight. The sum over labelled samples is divided by the number of all, as in
    `class_loss`.
    """
    known = labels >= 0
    target = F.one_hot(labels.clamp(min=0), logits.shape[1]).float()
    target = (1 - smoothing) * target + smoothing / logits.shape[1]
    entropy = -(weights * target * F.log_softmax(logits.float() / temperature, dim=-1)).sum(dim=-1)
    return (entropy * known).sum() / max(len(labels), 1)


def batch_class_weights(counts: torch.Tensor) -> torch.Tensor:
    """Return (K,) weights ln(N / n) from the (K,) numbers n of classes among a batch's N labelled images (MM-DINOv2).

    A class missing from the batch has the weight ln(N / 1e-6), which acts through label smoothing alone; all weights
    are 0 where no image is labelled.
    """
    total = counts.sum()
    return torch.where(total > 0, (total / (counts + 1e-6)).clamp(min=1e-6).log(), 0.0)


def gram_loss(student: torch.Tensor, teacher: torch.Tensor, share: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean squared difference of patches' cosine similarities within an image, student against Gram teacher.

    student, teacher  (N, P, D)
    share             (N,) float32 of each image in the mean; None: all alike
    """
    of_student, of_teacher = (_similarities(tokens) for tokens in (student, teacher))
    if share is None:
        return F.mse_loss(of_student, of_teacher)
    return (F.mse_loss(of_student, of_teacher, reduction="none").mean(dim=(1, 2)) * share).sum()


def _similarities(tokens: torch.Tensor) -> torch.Tensor:
    """(N, P, P) cosine similarities of (N, P, D) patches."""
    directions = F.normalize(tokens.float(), dim=-1)
    return directions @ directions.transpose(-1, -2)


def resize_patches(tokens: torch.Tensor, rows: int, columns: int, to: tuple[int, int]) -> torch.Tensor:
    """Resize (N, rows · columns, D) patch features on their grid to (N, to[0] · to[1], D): bicubic, not antialiased."""
    if (rows, columns) == to:
        return tokens
    square = tokens.transpose(1, 2).unflatten(2, (rows, columns)).float()
    return F.interpolate(square, size=to, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
