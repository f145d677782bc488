"""Clusters of clusters, and draws that are even at every level (Vo et al., arXiv 2405.15613).

k-means of the rows, k-means of its centroids, and so on. Plain k-means puts most centroids where most rows are; at
every level it is therefore repeated on the few rows nearest to each centroid, which spreads centroids over all that
there is (resampling, section 3.3). A cluster's share of the draws is divided among its parts, from the top down.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.curation import kmeans
from meddap.settings import SettingsError


def usual_sizes(rows: int) -> list[int]:
    """Return the numbers of clusters of three levels for so many rows: one for 20, 200 and 2,000."""
    sizes = [min(max(2, rows // part), 100_000 // (part // 20)) for part in (20, 200, 2000)]
    return [size for place, size in enumerate(sizes) if place == 0 or size < sizes[place - 1]]


def check_sizes(sizes: Sequence[int], rows: int) -> None:
    """Raise SettingsError for numbers of clusters that do not fall from level to level, or exceed the rows."""
    for before, size in zip([rows + 1, *sizes], sizes):
        if not 2 <= size < before:
            raise SettingsError(f"clusters.sizes={list(sizes)}: {size} of {before}; give numbers that fall, 2 or more")


def build(
    rows: np.ndarray, sizes: Sequence[int], rounds: int, nearest: int, passes: int, memory: float, seed: int
) -> list[np.ndarray]:
    """Return for each level the cluster of what is below it: of each row, of each cluster of rows, …

    rows     (N, D) float16 or float32, memory-mapped or not
    rounds   of resampling, each on the `nearest` rows of each cluster; passes of k-means each time
    """
    levels, below = [], rows
    for depth, size in enumerate(sizes):
        generator = np.random.default_rng([seed, depth])
        found = kmeans.fit(below, kmeans.start(below, size, generator), passes, memory, seed)
        for _ in range(rounds):
            some = _closest(found, nearest)
            centroids = kmeans.fit(below[some], found.centroids, passes, memory, seed).centroids
            found = kmeans.Clusters(centroids, *kmeans.assign(below, centroids, memory))
        levels.append(found.nearest)
        below = found.centroids
    return levels


def _closest(found: kmeans.Clusters, count: int) -> np.ndarray:
    """Return the rows that are among the `count` nearest ones of their centroid, in order."""
    order = np.lexsort((found.distance, found.nearest))
    cluster = found.nearest[order]
    rank = np.arange(len(order)) - np.searchsorted(cluster, cluster)
    return np.sort(order[rank < count])


def shares(levels: Sequence[np.ndarray], weights: np.ndarray, strength: float) -> np.ndarray:
    """Return (k,) the share of all draws that each cluster of the first level ought to have.

    weights   (N,) of the rows; strength: parts of one cluster share by mass^(1 − strength)
    """
    masses = [np.bincount(levels[0], weights, int(max(levels[0].max() + 1, len(levels[1]) if levels[1:] else 0)))]
    for level, above in zip(levels[1:], [*levels[2:], np.empty(0)]):
        masses.append(np.bincount(level, masses[-1], max(int(level.max()) + 1, len(above))))
    wanted = _even(masses[-1], np.zeros(len(masses[-1]), np.int64), np.ones(1), strength)
    for mass, parents in zip(masses[-2::-1], levels[:0:-1]):
        wanted = _even(mass, parents, wanted, strength)
    return wanted


def _even(mass: np.ndarray, parents: np.ndarray, given: np.ndarray, strength: float) -> np.ndarray:
    """Return what each part gets of what its parent was `given`."""
    parts = np.where(mass > 0, np.maximum(mass, 1e-300) ** (1 - strength), 0)
    whole = np.bincount(parents, parts, len(given))
    return np.divide(parts * given[parents], whole[parents], out=np.zeros(len(parts)), where=whole[parents] > 0)
