"""Near-duplicates of slices, series and patients, from hashes that are close and thumbnails that agree.

Slices are clustered around leaders, so that every member is a duplicate of its leader: chains of neighbouring slices do
not make one cluster of a whole series. Series are duplicates where many slices agree weakly, one after the other in the
same order; patients are where they share a series, or slices that agree strongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eval.curation import search
from eval.curation.alignment import agreement
from eval.curation.catalogue import Catalogue
from meddap.console import progress

_BATCH = 512  # pairs compared at a time


@dataclass(frozen=True)
class Pairs:
    """Pairs of slices that agree at least weakly: (P,) numbers first < second, (P,) float32 agreement.

    full  slices with so many hashes near theirs that not all of them may have been compared
    """

    first: np.ndarray
    second: np.ndarray
    score: np.ndarray
    full: int = 0

    def __len__(self) -> int:
        return len(self.first)

    def where(self, mask: np.ndarray) -> Pairs:
        return Pairs(self.first[mask], self.second[mask], self.score[mask], self.full)


def pairs(catalogue: Catalogue, radius: int, most: int, weakest: float) -> Pairs:
    """Return all pairs whose hashes differ in at most `radius` bits and that agree by `weakest` or more.

    most  of its nearest hashes are looked at for each slice. Plain slices are in no pair.
    """
    usable = np.flatnonzero(~catalogue.plain)
    hashes = np.asarray(catalogue.hashes) if len(usable) == len(catalogue) else catalogue.hashes[usable]
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    full = 0
    blocks = search.near(hashes, radius, most)
    for first, second, more in progress(blocks, 0, "blocks of slices compared"):
        found += _agreeing(catalogue, usable[first], usable[second], weakest)
        full += more
    if not found:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    first, second, score = (np.concatenate(column) for column in zip(*found))
    _, places = np.unique(first * len(catalogue) + second, return_index=True)  # each is met from both its ends
    return Pairs(first[places], second[places], score[places], full)


def _agreeing(
    catalogue: Catalogue, first: np.ndarray, second: np.ndarray, weakest: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    order = np.unique(first * len(catalogue) + second)
    first, second = np.divmod(order, len(catalogue))
    for start in range(0, len(first), _BATCH):
        mine = slice(start, start + _BATCH)
        score = agreement(catalogue.thumbnails[first[mine]], catalogue.thumbnails[second[mine]])
        kept = score >= weakest
        yield first[mine][kept], second[mine][kept], score[kept]


def clusters(count: int, found: Pairs) -> np.ndarray:
    """Return (count,) the number of each slice's cluster, 0 … C − 1; a slice without duplicates is one of its own.

    Slices with the most duplicates lead, the first one of those with equally many; each takes all that are still free.
    """
    first = np.concatenate([found.first, found.second])
    second = np.concatenate([found.second, found.first])
    order = np.argsort(first, kind="stable")
    second = second[order]
    ends = np.searchsorted(first[order], np.arange(count + 1))
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
