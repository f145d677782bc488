"""Patch features in few bytes: principal components of unit vectors as int8, as many as keep the cosines true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_QUERIES, _OTHERS, _CHUNK = 256, 8192, 16384  # patches
_KEPT = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # components that are tried
_NOTHING = 0.5  # a feature that was a unit vector is longer than this when it is read back; one that was 0 is not


@dataclass(frozen=True)
class Quantised:
    """M features of D channels as K components: component k of a row is middle[k] + step[k] · codes[row, k].

    codes   (M, K) int8; middle, step (K,) float32
    error   largest difference of a cosine to that of the D channels, between 256 rows and all M
    """

    codes: np.ndarray
    middle: np.ndarray
    step: np.ndarray
    error: float


def quantise(features: np.ndarray, error: float, seed: int = 0) -> Quantised:
    """Return (M, D) features as the fewest components whose cosines are wrong by less than `error`.

    All components are kept where no number of them does; the error that they have is in the result.
    """
    axes = _axes(features)
    drawn = np.random.default_rng(seed).permutation(len(features))
    queries, others = unit(features[drawn[:_QUERIES]]), unit(features[drawn[:_OTHERS]])
    tries = [count for count in _KEPT if count < len(axes)] + [len(axes)]
    for count in tries:
        if count == tries[-1] or _error(_stored(others, axes[:count]), queries, others) < error:
            found = _stored(features, axes[:count])
            # what a sample of the patches allows is measured against all of them
            found = Quantised(found.codes, found.middle, found.step, _whole_error(found, features, drawn[:_QUERIES]))
            if found.error < error or count == tries[-1]:
                return found
    raise AssertionError  # the last of the tries returns


def decoded(codes: np.ndarray, middle: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return (…, K) float32 unit vectors, whose products are the cosines; 0 for a feature that was 0."""
    values = middle + step * codes.astype(np.float32)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.where(length > _NOTHING, values / np.maximum(length, _NOTHING), 0).astype(np.float32)


def unit(features: np.ndarray) -> np.ndarray:
    """Return (…, D) float32 features of length 1; 0 stays 0."""
    values = features.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)


def _chunks(features: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(features), _CHUNK):
        yield unit(features[start : start + _CHUNK])


def _axes(features: np.ndarray) -> np.ndarray:
    """Return (D, D) principal axes of the unit vectors about 0, so that products are kept; the strongest first."""
    width = features.shape[1]
    total = np.zeros((width, width))
    for part in _chunks(features):
        total += part.T @ part
    return np.linalg.eigh(total)[1][:, ::-1].T.astype(np.float32)


def _stored(features: np.ndarray, axes: np.ndarray) -> Quantised:
    """Return components with 255 even levels between the lowest and the highest value of each."""
    low, high = np.full(len(axes), np.inf, np.float32), np.full(len(axes), -np.inf, np.float32)
    for part in _chunks(features):
        placed = part @ axes.T
        low, high = np.minimum(low, placed.min(axis=0)), np.maximum(high, placed.max(axis=0))
    middle, step = (low + high) / 2, np.maximum((high - low) / 254, np.float32(1e-12))
    rounded = (np.rint((part @ axes.T - middle) / step) for part in _chunks(features))
    codes = np.concatenate([each.clip(-127, 127).astype(np.int8) for each in rounded])
    return Quantised(codes, middle, step, np.nan)


def _error(found: Quantised, queries: np.ndarray, others: np.ndarray) -> float:
    """Return the largest error of the cosines between `others` and the queries, which are the first of them."""
    read = decoded(found.codes, found.middle, found.step)
    return float(np.abs(read[: len(queries)] @ read.T - queries @ others.T).max())


def _whole_error(found: Quantised, features: np.ndarray, rows: np.ndarray) -> float:
    """Return the largest error of the cosines between some rows and all."""
    queries, read, worst, start = unit(features[rows]), decoded(found.codes[rows], found.middle, found.step), 0.0, 0
    for part in _chunks(features):
        mine = decoded(found.codes[start : start + len(part)], found.middle, found.step)
        worst = max(worst, float(np.abs(read @ mine.T - queries @ part.T).max()))
        start += len(part)
    return worst
