"""k nearest neighbours on frozen features, for several labels of which some are unknown."""

from __future__ import annotations

import numpy as np


def scores(train: np.ndarray, present: np.ndarray, queries: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """(M, O) share of votes for presence among the k nearest training slices by cosine.

    train (N, D), present (N, O) in {1, 0, −1}, queries (M, D). A neighbour votes with
    exp(cosine / temperature); a slice in which the organ is unlabelled is no neighbour for that organ.
    0.5 where an organ is labelled in no training slice.
    """
    similarity = _unit(queries) @ _unit(train).T
    found = np.full((len(queries), present.shape[1]), 0.5)
    for organ in range(present.shape[1]):
        known = np.flatnonzero(present[:, organ] >= 0)
        if not len(known):
            continue
        mine = similarity[:, known]
        count = min(k, len(known))
        nearest = np.argpartition(-mine, count - 1, axis=1)[:, :count]
        close = np.take_along_axis(mine, nearest, axis=1)
        votes = np.exp((close - close.max(axis=1, keepdims=True)) / temperature)
        found[:, organ] = (votes * (present[known, organ][nearest] == 1)).sum(axis=1) / votes.sum(axis=1)
    return found


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
