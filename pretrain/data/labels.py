"""Which class labels are learned from: those of a share of the patients, the same ones at every start."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.schema import Split


@dataclass(frozen=True)
class Labelling:
    """Which labels a stream's batches carry.

    columns  names of the label columns
    known    (N,) bool of all samples of the split, whose labels may be seen; None: all
    only     (n,) int64 the samples that are read, where not all of the split are
    """

    columns: tuple[str, ...] = ()
    known: np.ndarray | None = None
    only: np.ndarray | None = None

    def samples(self, split: Split) -> int:
        """Return how many samples an epoch has."""
        return len(split) if self.only is None else len(self.only)

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """Return the samples of the split at some places of an epoch's samples."""
        return places if self.only is None else self.only[places]

    def of(self, samples: np.ndarray, said: Sequence[Mapping[str, float]]) -> np.ndarray:
        """Return (B, C) int64 classes of samples labelled `said`; −1 where there is none or it may not be seen."""
        found = np.full((len(samples), len(self.columns)), -1, np.int64)
        for row, (sample, labels) in enumerate(zip(samples, said)):
            if self.known is None or self.known[sample]:
                found[row] = [int(labels.get(column, -1)) for column in self.columns]
        return found


UNLABELLED = Labelling()


def known(split: Split, share: float, columns: Sequence[str]) -> np.ndarray:
    """Return (N,) bool: the samples of `share` of the split's patients of each class, rounded up.

    Where there are several columns, of each combination of their classes. A larger share includes a smaller one.

    The patients are drawn by a hash of their hashed ids, so that a probe and a training draw the same.
    """
    if share >= 1:
        return np.ones(len(split), bool)
    subjects, first, owner = np.unique(split.index["subject"], return_index=True, return_inverse=True)
    alike: dict[tuple, list[int]] = {}
    for place, sample in enumerate(first):
        said = split.labels(int(sample))
        alike.setdefault(tuple(said.get(column) for column in columns), []).append(place)
    chosen = np.zeros(len(subjects), bool)
    for places in alike.values():
        places.sort(key=lambda place: hashlib.sha256(f"labelled:{subjects[place]}".encode()).digest())
        chosen[places[: int(np.ceil(share * len(places)))]] = True
    return chosen[owner]


def balanced(counts: Sequence[int]) -> tuple[float, ...]:
    """Return weights of classes by inverse frequency, 1 on average over the samples; 0 for a class without samples."""
    total, classes = sum(counts), sum(count > 0 for count in counts)
    return tuple(total / (classes * count) if count else 0.0 for count in counts)
