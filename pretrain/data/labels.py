"""Which class labels are learned from: those of a share of the patients, the same ones at every start."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.schema import Split


@dataclass(frozen=True)
class Labelling:
    """Which labels a stream's batches carry.

    columns  names of the label columns
    known    (N,) bool of all samples of the split, whose labels may be seen; None: all
    only     (n,) int64 the samples that are read, where not all of the split are
    classes  of each column the training's number of each class of the data set, where they differ from its own
    """

    columns: tuple[str, ...] = ()
    known: np.ndarray | None = None
    only: np.ndarray | None = None
    classes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def samples(self, split: Split) -> int:
        """Return how many samples an epoch has."""
        return len(split) if self.only is None else len(self.only)

    def of(self, sample: int, said: Mapping[str, float]) -> list[int]:
        """Return the class in each column of a sample labelled `said`; −1 where there is none or it may not be seen."""
        if self.known is not None and not self.known[sample]:
            return [-1] * len(self.columns)
        return [self._class(column, int(said.get(column, -1))) for column in self.columns]

    def _class(self, column: str, number: int) -> int:
        renamed = self.classes.get(column)
        return number if renamed is None or number < 0 else renamed[number]


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


def balanced(counts: Sequence[float]) -> tuple[float, ...]:
    """Return weights of classes by inverse frequency, 1 on average over the samples; 0 for a class without samples."""
    total, classes = sum(counts), sum(count > 0 for count in counts)
    return tuple(total / (classes * count) if count else 0.0 for count in counts)
