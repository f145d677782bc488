"""The losses of self-distillation, on plain tensors, each computed in float32.

DINO (arXiv 2104.14294), iBOT (arXiv 2111.07832), KoLeo (arXiv 1806.03198), targets by
Sinkhorn-Knopp (SwAV, arXiv 2006.09882), Gram anchoring (DINOv3, arXiv 2508.10104, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pretrain.distributed import ALONE, World

_SAME = 1e-6  # distance of unit vectors below which they are one and the same


@torch.no_grad()
def sinkhorn_targets(logits: torch.Tensor, temperature: float, iterations: int = 3) -> torch.Tensor:
    """Soft assignments of M samples to K prototypes, each prototype used equally.

    logits (M, K) of the teacher → (M, K) float32 rows that sum to 1. M may be 0.
    """
    return balanced_targets([logits], temperature, iterations)[0]


@torch.no_grad()
def balanced_targets(
    heads: Sequence[torch.Tensor], temperature: float, iterations: int = 3, world: World = ALONE
) -> list[torch.Tensor]:
    """`sinkhorn_targets` of several heads, over the samples of all ranks; each rank gets its own rows.

    Scaling vectors are kept as logarithms. A prototype's scaling starts at minus its highest score anywhere; after a
    round of both scalings every entry is a probability and a prototype's sum over M samples lies between 1 / (M · K)
    and M, so that no exponential overflows and no sum vanishes, however low the temperature and however far a prototype
    is from every sample. The sums of all heads travel in one message an iteration.
    """
    scores = [head.float() / temperature for head in heads]
    widths = [each.shape[1] for each in scores]
    rows = [each.new_zeros(len(each), 1) for each in scores]
    columns = -world.max_(torch.cat([_highest(each) for each in scores]))
    for _ in range(iterations):
        scaled = zip(scores, rows, columns.split(widths))
        sums = world.sum_(torch.cat([(score + row + column).exp().sum(dim=0) for score, row, column in scaled]))
        columns = columns - sums.log()
        rows = [
            -torch.logsumexp(score + column, dim=1, keepdim=True)
            for score, column in zip(scores, columns.split(widths))
        ]
    # rows that sum to 1 to the last digit
    return [torch.softmax(score + column, dim=1) for score, column in zip(scores, columns.split(widths))]


def _highest(scores: torch.Tensor) -> torch.Tensor:
    """(K,) highest of each column; minus infinity where there are no rows."""
    return scores.amax(dim=0) if len(scores) else scores.new_full(scores.shape[1:], -torch.inf)


def dino_loss(
    student: torch.Tensor, targets: torch.Tensor, temperature: float, *, ignore_diagonal: bool = False
) -> torch.Tensor:
    """Cross-entropy of every student crop against every teacher crop of the same image, mean over pairs.

    student (S, B, K) logits, targets (T, B, K) probabilities. With `ignore_diagonal` crop i of the
    student is not compared with crop i of the teacher: the same view.
    """
    logarithms = F.log_softmax(student.float() / temperature, dim=-1)
    pairs = -torch.einsum("sbk,tbk->st", logarithms, targets)
    count = pairs.numel()
    if ignore_diagonal:
        same = min(pairs.shape)
        pairs, count = pairs - torch.diag_embed(pairs.diagonal()), count - same
    return pairs.sum() / (count * student.shape[1])


def ibot_loss(student: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy on masked patches; each crop's patches share a weight of 1, summed over the crops' number.

    student (M, K) logits and targets (M, K) of the masked patches in row-major order of `masks`;
    masks (N, P) bool. A crop without a mask adds nothing but counts in the mean.
    """
    logarithms = F.log_softmax(student.float() / temperature, dim=-1)
    terms = -(targets * logarithms).sum(dim=-1)
    weights = (1 / masks.sum(dim=1).clamp(min=1)).unsqueeze(1).expand_as(masks)[masks]
    return (terms * weights).sum() / len(masks)


def koleo_loss(features: torch.Tensor, group: int | None = None, eps: float = 1e-8) -> torch.Tensor:
    """Minus the mean logarithm of the distance to the nearest neighbour, for (B, D) features.

    Spreads the batch over the sphere. Neighbours are sought among `group` consecutive samples, None for all. A sample
    without another in its group adds 0. Duplicates (two slices of air) keep the reference's value, held finite by
    `eps`, but no gradient: theirs points nowhere and is a million times everyone else's.
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
    distance = torch.where(distance < _SAME, distance.detach(), distance)
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


class Centring:
    """DINO's first way to balanced targets: softmax of centred logits, the centre a moving mean of the batches'."""

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        self.center = torch.zeros(1, prototypes)
        self.momentum = momentum

    @torch.no_grad()
    def targets(self, logits: torch.Tensor, temperature: float, world: World = ALONE) -> torch.Tensor:
        """(M, K) probabilities by the centre so far; the batch of all ranks then moves the centre."""
        probabilities = torch.softmax((logits.float() - self.center) / temperature, dim=-1)
        count = logits.new_full((1,), len(logits), dtype=torch.float32)
        sums = world.sum_(torch.cat([logits.float().sum(dim=0), count]))
        self.center = torch.lerp((sums[:-1] / sums[-1:]).unsqueeze(0), self.center, self.momentum)
        return probabilities
