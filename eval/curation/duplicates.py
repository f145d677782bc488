"""Near-duplicates of slices, series and patients, from pairs of slices that look alike.

Slices are clustered around leaders, so that every member is a duplicate of its leader: chains of neighbouring slices do
not make one cluster of a whole series. Series are duplicates where many slices agree weakly, one after the other in the
same order; patients are where they share a series, or slices that agree strongly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.curation.catalogue import Catalogue
from eval.curation.pairs import Pairs


def clusters(count: int, found: Pairs) -> np.ndarray:
    """Return (count,) the number of each slice's cluster, 0 … C − 1; a slice without duplicates is one of its own.

    Slices with the most duplicates lead, the first one of those with equally many; each takes all that are still free.
    """
    first = np.concatenate([found.first, found.second])
    second = np.concatenate([found.second, found.first])
    order = np.argsort(first, kind="stable")
    second = second[order]
    ends = np.concatenate([[0], np.cumsum(np.bincount(first, minlength=count))])
    leader = np.full(count, -1, np.int64)
    for number in np.argsort(-np.diff(ends), kind="stable"):
        if leader[number] < 0:
            mine = second[ends[number] : ends[number + 1]]
            leader[mine[leader[mine] < 0]] = number
            leader[number] = number
    return np.unique(leader, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class SameSeries:
    """Two series that show the same: their numbers in `names`, the share of the shorter one that agrees."""

    first: int
    second: int
    share: float
    score: float


def same_series(catalogue: Catalogue, found: Pairs, strongest: float, share: float) -> list[SameSeries]:
    """Return pairs of series that show the same patient at the same time.

    share  of the slices of the shorter one that must agree with one of the other, in the same or the reverse order.
           Series of fewer than 3 slices show the same where all of them agree by `strongest`.
    """
    _, code, sizes = np.unique(catalogue.series, return_inverse=True, return_counts=True)
    across = code[found.first] != code[found.second]
    first, second, score = found.first[across], found.second[across], found.score[across]
    swap = code[first] > code[second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    both = code[first] * len(sizes) + code[second]
    order = np.lexsort((-score, both))
    made = []
    for mine in np.split(order, np.flatnonzero(np.diff(both[order])) + 1) if len(order) else []:
        one, other = int(code[first[mine[0]]]), int(code[second[mine[0]]])
        shorter = min(sizes[one], sizes[other])
        ends = (first, second) if sizes[one] <= sizes[other] else (second, first)
        kept = mine[np.unique(ends[0][mine], return_index=True)[1]]  # the best of each slice of the shorter one
        if shorter < 3:
            kept = kept[score[kept] >= strongest]
            in_order = len(kept)
            needed = float(shorter)
        else:
            in_order = _longest_run(catalogue.order[ends[0][kept]], catalogue.order[ends[1][kept]])
            needed = max(3.0, share * shorter)
        if in_order >= needed:
            made.append(SameSeries(one, other, in_order / float(shorter), float(score[kept].mean())))
    return made


def _longest_run(along: np.ndarray, other: np.ndarray) -> int:
    """Return how many of the matches lie in one order, rising or falling (longest monotone subsequence)."""
    laid = other[np.argsort(along, kind="stable")].astype(np.int64)
    best = 0
    for values in (laid, -laid):
        tails: list[int] = []
        for value in values:
            place = int(np.searchsorted(tails, value, side="right"))
            tails[place : place + 1] = [int(value)]
        best = max(best, len(tails))
    return best


def same_patients(catalogue: Catalogue, same: list[SameSeries]) -> np.ndarray:
    """Return (K, 2) uint64: pairs of short hashes of patients, the smaller one first, who share a series."""
    names, places = np.unique(catalogue.series, return_index=True)
    owner = catalogue.subject[places]
    two = {tuple(sorted((int(owner[each.first]), int(owner[each.second])))) for each in same}
    return np.array(sorted(pair for pair in two if pair[0] != pair[1]), np.uint64).reshape(-1, 2)


def leaks(catalogue: Catalogue, patients: np.ndarray) -> list[tuple[str, str, str, str]]:
    """Return (split, patient, split, patient) of pairs of patients in different splits, as short hashes."""
    subjects, places = np.unique(catalogue.subject, return_index=True)
    split = dict(zip(subjects.tolist(), catalogue.split[places].tolist()))
    rows = []
    for pair in patients.tolist():
        first, second = sorted(pair, key=lambda patient: (split[patient], patient))
        if split[first] != split[second]:
            here, there = catalogue.splits[split[first]], catalogue.splits[split[second]]
            rows.append((here, f"{first:016x}", there, f"{second:016x}"))
    return rows
