"""MVFA: residual adapters at several depths of a frozen encoder, for anomalies from few slices (arXiv 2403.12570).

Behind some blocks two adapters see all tokens: one learns where an anomaly is, one whether there is any. Their outputs
are added to what goes on; their middles, as wide as the features of texts, are compared with two class vectors,
normal and abnormal, and with a memory of normal slices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

_SLOPE = 0.01  # of the leaky ReLUs
_KEPT, _ADDED = 0.8, 0.1  # of the tokens; of each adapter's output
_SCALE = 100.0  # of cosines
_TINY = 1e-5
_ANGLES = (-math.pi / 8, -math.pi / 16, math.pi / 16, math.pi / 8)
_SHIFTS = ((0.1, 0.1), (-0.1, 0.1), (-0.1, -0.1), (0.1, -0.1))  # of half the width and height
KINDS = ("places", "presence")

Middles = dict[str, dict[int, torch.Tensor]]  # of each kind of adapter, by block


class Adapter(nn.Module):
    """(…, D) tokens → their (…, E) middle and a (…, D) output: two linear layers without bias, each with leaky ReLU."""

    def __init__(self, width: int, middle: int) -> None:
        super().__init__()
        self.fc1 = nn.Sequential(nn.Linear(width, middle, bias=False), nn.LeakyReLU(_SLOPE))
        self.fc2 = nn.Sequential(nn.Linear(middle, width, bias=False), nn.LeakyReLU(_SLOPE))

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        middle = self.fc1(tokens)
        return middle, self.fc2(middle)


class ResidualAdapters(nn.Module):
    """A pair of adapters behind each of `blocks`, and the class vectors (2, E), normal and abnormal.

    vectors  features of texts, of unit length, which stay; None: they are learned (an encoder without a text tower)
    """

    def __init__(
        self, blocks: Sequence[int], width: int, middle: int, vectors: torch.Tensor | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.adapters = nn.ModuleDict(
            {kind: nn.ModuleDict({str(number): Adapter(width, middle) for number in blocks}) for kind in KINDS}
        )
        for parameter in self.adapters.parameters():  # as nn.Linear, but by the generator
            bound = 1 / math.sqrt(parameter.shape[1])
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        drawn = torch.randn(2, middle, generator=generator) if vectors is None else vectors.clone()
        self.vectors = nn.Parameter(F.normalize(drawn, dim=1), requires_grad=vectors is None)

    def change(self, number: int, tokens: torch.Tensor, middles: Middles) -> torch.Tensor:
        """Return what goes on behind block `number`, (M, tokens, D); the middles of its adapters go into `middles`."""
        mixed = _KEPT * tokens
        for kind in KINDS:
            middle, out = self.adapters[kind][str(number)](tokens)  # type: ignore[index]
            middles[kind][number] = middle
            mixed = mixed + _ADDED * out
        return mixed

    def logits(self, middle: torch.Tensor) -> torch.Tensor:
        """Return (…, 2) logits of (…, E) middles, normal and abnormal."""
        return _SCALE * F.normalize(middle, dim=-1) @ F.normalize(self.vectors, dim=1).T


def presence_loss(logits: torch.Tensor, owner: torch.Tensor, abnormal: torch.Tensor) -> torch.Tensor:
    """Return the loss of whether slices hold an anomaly: cross-entropy of their mean probability over patches.

    logits (M, P, 2) of the patches of M planes; owner (M,) the slice of each; abnormal (N,) in {0, 1}. A sigmoid is
    taken of the probability, as in the reference's code: it bounds the pull of an abnormal slice on normal patches.
    """
    chance = mean_by(logits.softmax(dim=-1)[..., 1].mean(dim=1), owner, len(abnormal))
    return F.binary_cross_entropy_with_logits(chance, abnormal)


def places_loss(logits: torch.Tensor, owner: torch.Tensor, masks: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return the focal and the Dice loss of where anomalies are.

    logits (M, P, 2) of the patches of M planes, a square grid; owner (M,) the slice of each; masks (N, side, side) in
    {0, 1}; known (N, side, side) in {0, 1}: pixels that take part
    """
    grid = math.isqrt(logits.shape[1])
    square = logits.transpose(1, 2).unflatten(2, (grid, grid))
    fine = F.interpolate(square, masks.shape[1:], mode="bilinear", align_corners=True)
    chances, mine, there = fine.softmax(dim=1), masks[owner], known[owner]
    return focal(chances, mine, there) + dice(chances[:, 1], mine, there)


def focal(chances: torch.Tensor, masks: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return the focal loss, γ = 2, of (M, 2, h, w) probabilities against (M, h, w) masks: mean over known pixels."""
    wanted = torch.stack([1 - masks, masks], dim=1).clamp(_TINY, 1 - _TINY)
    right = (wanted * chances).sum(dim=1) + _TINY
    each = -((1 - right) ** 2) * right.log()
    return (each * known).sum() / known.sum().clamp(min=1)


def dice(chances: torch.Tensor, masks: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return 1 minus the mean over slices of (2 · overlap + 1) / (both areas + 1), in the known pixels."""
    chances, masks = (chances * known).flatten(1), (masks * known).flatten(1)
    overlap = (chances * masks).sum(dim=1)
    return 1 - ((2 * overlap + 1) / (chances.sum(dim=1) + masks.sum(dim=1) + 1)).mean()


def distances(tokens: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Return (…,) 1 minus the cosine of each of (…, E) tokens to the nearest of the (K, E) memory."""
    nearest = (F.normalize(tokens, dim=-1) @ F.normalize(memory, dim=1).T).amax(dim=-1)
    return 1 - nearest


def mean_by(values: torch.Tensor, owner: torch.Tensor, count: int) -> torch.Tensor:
    """Return (count, …) means of (M, …) values over the rows of each owner."""
    total = torch.zeros(count, *values.shape[1:], device=values.device).index_add(0, owner, values)
    rows = torch.bincount(owner, minlength=count).clamp(min=1)
    return total / rows.view(-1, *(1,) * (values.dim() - 1))


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Return (11 N, C, h, w): images or masks as they are, turned by ±22.5° and ±11.25°, shifted, and mirrored in two
    ways; what comes in from beyond the edge is reflected."""
    found = [images]
    for angle in _ANGLES:
        cosine, sine = math.cos(angle), math.sin(angle)
        found.append(_resampled(images, [[cosine, -sine, 0.0], [sine, cosine, 0.0]]))
    found += [_resampled(images, [[1.0, 0.0, across], [0.0, 1.0, down]]) for across, down in _SHIFTS]
    return torch.cat([*found, images.flip(3), images.flip(2)])


def _resampled(images: torch.Tensor, matrix: Sequence[Sequence[float]]) -> torch.Tensor:
    theta = torch.tensor(matrix, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def empty_middles() -> Middles:
    """Return a place for the middles of one pass."""
    return {kind: {} for kind in KINDS}
