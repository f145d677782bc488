"""Sampling weights: duplicates count once, and the words of every attribute share the draws as evenly as was asked.

Iterative proportional fitting (raking; Deming and Stephan 1940): attribute after attribute, the weights of a word are
scaled to the share that they ought to have, round after round, until nothing moves. A cap and a floor hold throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_ROUNDS = 200
_TOLERANCE = 1e-4  # of a share


@dataclass(frozen=True)
class Balance:
    """Weights (N,) float32 of mean 1, and how the fit went.

    rounds  of the fit; missed: the largest difference between a share and its target at the end, which the cap, the
            floor, or attributes that go together (one scanner for one body part) leave
    """

    weights: np.ndarray
    rounds: int
    missed: float


def once(clusters: np.ndarray, keep: float) -> np.ndarray:
    """Return (N,) float64 of mean 1: a cluster of m duplicates weighs 1 + keep · (m − 1) single slices."""
    size = np.bincount(clusters)[clusters]
    weights = (1 + keep * (size - 1)) / size
    return weights / weights.mean()


def targets(codes: np.ndarray, weights: np.ndarray, strength: float, unknown: int | None = None) -> np.ndarray:
    """Return (W,) the share that each word ought to have of all draws.

    strength  0 leaves the shares as they are, 1 makes them equal; between, they go with share^(1 − strength)
    unknown   the number of the word that says nothing: it keeps its share, the others divide the rest
    """
    shares = np.bincount(codes, weights)
    shares = shares / shares.sum()
    wanted = np.where(shares > 0, shares ** (1 - strength), 0)
    if unknown is not None and unknown < len(shares):
        kept = shares[unknown]
        wanted[unknown] = 0
        wanted = wanted / wanted.sum() * (1 - kept) if wanted.any() else wanted
        wanted[unknown] = kept
    return wanted / wanted.sum()


def balanced(
    start: np.ndarray,
    attributes: Mapping[str, tuple[np.ndarray, np.ndarray]],
    most: float,
    least: float = 0.0,
) -> Balance:
    """Return weights near `start` under which every attribute has its shares.

    start       (N,) above 0
    attributes  name → (codes (N,), share that each word ought to have)
    most, least a weight's bounds, least ≤ 1 ≤ most, in multiples of the mean
    """
    weights = _bounded(start.astype(np.float64), most, least)
    rounds, missed = 0, 0.0
    for rounds in range(1, _ROUNDS + 1):
        before = missed
        for codes, wanted in attributes.values():
            shares = np.bincount(codes, weights, len(wanted)) / weights.sum()
            factor = np.divide(wanted, shares, out=np.zeros_like(wanted), where=shares > 0)
            weights = _bounded(weights * factor[codes], most, least)
        missed = max((_off(weights, codes, wanted) for codes, wanted in attributes.values()), default=0.0)
        if missed < _TOLERANCE or (rounds > 20 and abs(missed - before) < _TOLERANCE / 100):
            break
    return Balance(weights.astype(np.float32), rounds, missed)


def effective(weights: np.ndarray) -> float:
    """Return how many samples of equal weight would say as much (Kish): (Σw)² / Σw²."""
    exact = weights.astype(np.float64)
    return float(exact.sum() ** 2 / (exact**2).sum())


def _off(weights: np.ndarray, codes: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(np.bincount(codes, weights, len(wanted)) / weights.sum() - wanted).max())


def _bounded(weights: np.ndarray, most: float, least: float) -> np.ndarray:
    """Return weights times one factor, cut to least … most, such that their mean is 1."""
    scaled = weights / weights.mean()
    if scaled.min() >= least and scaled.max() <= most:
        return scaled
    low, high = 0.0, 1.0
    while np.clip(weights * high, least, most).mean() < 1 - 1e-12 and high < 1e12:
        high *= 2
    for _ in range(50):
        factor = (low + high) / 2
        low, high = (factor, high) if np.clip(weights * factor, least, most).mean() < 1 else (low, factor)
    cut: np.ndarray = np.clip(weights * high, least, most)
    return cut / cut.mean()
