"""Segmentation by nearest neighbours: a patch is drawn as the training patches most like it were.

Nothing is learned, so it shows what the features know by themselves (as in arXiv 2402.17514, section 5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

_GATHERED = 2**23  # neighbours' cells that are looked at at a time


@dataclass(frozen=True)
class PatchBank:
    """M training patches.

    tokens     (M, D) float32 of unit length
    drawn      (M, O, c · c) float32 in {0, 1}: what each structure covers of the patch's cells
    annotated  (M, O) float32 in {0, 1}: a patch of a series in which a structure is unlabelled has no vote on it
    cells      c, cells per patch and axis
    """

    tokens: torch.Tensor
    drawn: torch.Tensor
    annotated: torch.Tensor
    cells: int

    def draw(self, patches: torch.Tensor, grid: tuple[int, int], ks: list[int], temperature: float) -> torch.Tensor:
        """Return (K, N, O, R, R) shares of votes of (N, P, D) patches for each k of `ks`.

        A neighbour votes with exp(cosine / temperature); 0 where no neighbour may vote.
        """
        count, (rows, columns), cells = len(patches), grid, self.cells
        shares = []
        step = max(16, _GATHERED // (max(ks) * self.drawn[0].numel()))
        for some in F.normalize(patches.flatten(0, 1), dim=1).split(step):
            close, which = (some @ self.tokens.T).topk(min(max(ks), len(self.tokens)), dim=1)
            votes = ((close - close[:, :1]) / temperature).exp()[:, :, None] * self.annotated[which]  # (n, k, O)
            shares.append(torch.stack([self._share(votes[:, :k], which[:, :k]) for k in ks]))
        found = torch.cat(shares, dim=1).view(len(ks), count, rows, columns, -1, cells, cells)
        return found.permute(0, 1, 4, 2, 5, 3, 6).reshape(len(ks), count, -1, rows * cells, columns * cells)

    def _share(self, votes: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Return (n, O, c · c) from votes (n, k, O) of the patches `which` (n, k)."""
        heard = torch.einsum("nko,nkoc->noc", votes, self.drawn[which])
        return heard / votes.sum(dim=1).clamp(min=1e-12).unsqueeze(2)


def collect(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], total: int, size: int, cells: int, seed: int
) -> PatchBank:
    """Return a bank of about `size` patches out of `total`.

    batches  (features (n, P, D), structures (n, O, R, R) in {0, 1}, NaN where unknown, annotated (n, O)) of the
             training slices
    Patches of structures come first: each structure has an equal part of half the bank, the rest is drawn from what
    is left.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, drawn, annotated = [], [], []
    for features, structures, known in batches:
        count, organs = known.shape
        side = round(features.shape[1] ** 0.5)
        squares = structures.view(count, organs, side, cells, side, cells).permute(0, 2, 4, 1, 3, 5)
        squares = squares.reshape(count * side * side, organs, cells * cells)
        votes = known.float().repeat_interleave(side * side, dim=0)
        unknown = squares.isnan().any(dim=2)  # a patch that is known in part votes on nothing
        votes, squares = votes * ~unknown, squares.nan_to_num()
        holds = (squares.sum(dim=2) > 0) & ~unknown
        # twice the wanted share of all patches, every patch of a structure: thinned at the end
        keep = (torch.rand(len(squares), generator=generator) < 2 * size / total) | holds.any(dim=1)
        keep &= votes.any(dim=1)  # a patch without a vote would only take a neighbour's place
        tokens.append(F.normalize(features.flatten(0, 1)[keep].float(), dim=1).half())
        drawn.append(squares[keep].bool())
        annotated.append(votes[keep].bool())
    kept = torch.cat(drawn)
    chosen = _thin(kept.any(dim=2), size, generator)
    votes = torch.cat(annotated)[chosen].float()
    return PatchBank(torch.cat(tokens)[chosen].float(), kept[chosen].float(), votes, cells)


def _thin(holds: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return the sorted numbers of the patches that stay; holds (M, O) bool."""
    order = torch.randperm(len(holds), generator=generator)
    each = max(1, size // (2 * holds.shape[1]))
    chosen = np.zeros(len(holds), bool)
    for organ in range(holds.shape[1]):
        chosen[order[holds[order, organ]][:each].numpy()] = True
    rest = order.numpy()[~chosen[order.numpy()]]
    chosen[rest[: max(size - int(chosen.sum()), 0)]] = True
    return torch.from_numpy(np.flatnonzero(chosen))
