"""k-means over rows that lie on the disk: Lloyd's passes block by block, in bounded memory.

In memory: one block of rows and its distances (`memory` bytes at most), centroids and their sums, a few numbers a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

_SMALLEST_BLOCK = 256
_POOL, _SPREAD = 20, 500  # rows for each cluster among which to start; clusters up to which they are spread


@dataclass(frozen=True)
class Clusters:
    """centroids (k, D) float32; of each of N rows the number of the nearest one (int32) and its squared distance."""

    centroids: np.ndarray
    nearest: np.ndarray
    distance: np.ndarray


def block_rows(clusters: int, width: int, memory: float) -> int:
    """Return how many rows a block has: distances float32 and as much again to compare, rows float16 and float32."""
    return max(_SMALLEST_BLOCK, int(memory / (8 * clusters + 6 * width)))


def peak_bytes(rows: int, width: int, clusters: int, memory: float) -> float:
    """Return the bytes that a level of the hierarchy holds at most: one block, centroids and sums, 36 bytes a row."""
    block = block_rows(clusters, width, memory) * (8 * clusters + 6 * width + 40)
    return block + 32.0 * clusters * width + 36.0 * rows


def start(rows: np.ndarray, clusters: int, generator: np.random.Generator) -> np.ndarray:
    """Return (k, D) float32 rows to start from: far apart by greedy k-means++ on some, or drawn where k is large."""
    pool = np.sort(generator.choice(len(rows), min(len(rows), _POOL * clusters), replace=False))
    if clusters > _SPREAD:
        return np.asarray(rows[np.sort(generator.choice(pool, clusters, replace=False))], np.float32)
    some = np.asarray(rows[pool], np.float32)
    chosen = [int(generator.integers(len(some)))]
    lengths = (some**2).sum(axis=1, dtype=np.float64)
    away = (lengths + lengths[chosen[0]] - 2 * (some @ some[chosen[0]])).clip(0)
    trials = 2 + int(np.log(clusters))  # the best of some: one alone often falls where a centroid is
    for _ in range(clusters - 1):
        total = away.sum()
        chances = away / total if total > 0 else None
        tried = generator.choice(len(some), trials, p=chances)
        left = np.minimum(away, (lengths + lengths[tried, None] - 2 * (some[tried] @ some.T)).clip(0))
        best = int(left.sum(axis=1).argmin())
        chosen.append(int(tried[best]))
        away = left[best]
    return some[chosen]


def fit(rows: np.ndarray, begin: np.ndarray, passes: int, memory: float, seed: int = 0) -> Clusters:
    """Return clusters of `rows` (N, D) float16 or float32, from centroids `begin` (k, D), after so many passes.

    A cluster that loses all its rows goes to one of those that lie farthest from their centroid.
    """
    centroids = np.array(begin, np.float32)
    generator = np.random.default_rng(seed)
    for _ in range(passes):
        sums, counts = np.zeros(centroids.shape, np.float64), np.zeros(len(centroids), np.int64)
        farthest = np.empty((0, 2))
        for first, block, nearest, distance in _passes(rows, centroids, memory):
            member = csr_matrix(
                (np.ones(len(block), np.float32), (nearest, np.arange(len(block)))), (len(centroids), len(block))
            )
            sums += member @ block
            counts += np.bincount(nearest, minlength=len(centroids))
            far = np.argpartition(-distance, min(len(centroids), len(block)) - 1)[: len(centroids)]
            farthest = np.concatenate([farthest, np.stack([distance[far], first + far], axis=1)])
            farthest = farthest[np.argsort(-farthest[:, 0], kind="stable")[: len(centroids)]]
        filled = counts > 0
        centroids[filled] = (sums[filled] / counts[filled, None]).astype(np.float32)
        empty = np.flatnonzero(~filled)
        taken = farthest[: 4 * len(empty), 1].astype(np.int64)  # not only outliers, where there are many
        for place, row in zip(empty, generator.permutation(taken)):
            centroids[place] = rows[row]
    nearest, distance = assign(rows, centroids, memory)
    return Clusters(centroids, nearest, distance)


def assign(rows: np.ndarray, centroids: np.ndarray, memory: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) int32 the nearest centroid of each row and (N,) float32 the squared distance to it."""
    nearest, distance = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    for first, block, mine, away in _passes(rows, centroids, memory):
        nearest[first : first + len(block)], distance[first : first + len(block)] = mine, away
    return nearest, distance


def _passes(
    rows: np.ndarray, centroids: np.ndarray, memory: float
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (first row, block float32, nearest centroid, squared distance) of one pass."""
    size = block_rows(len(centroids), rows.shape[1], memory)
    lengths = (centroids**2).sum(axis=1)
    for first in range(0, len(rows), size):
        block = np.asarray(rows[first : first + size], np.float32)
        away = block @ centroids.T
        away *= -2
        away += lengths
        nearest = np.argmin(away, axis=1)
        distance = away[np.arange(len(block)), nearest] + (block**2).sum(axis=1)
        yield first, block, nearest, np.maximum(distance, 0)
