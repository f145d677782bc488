"""Whether the site of a patient tells the label by itself: then a probe may have learned the scanner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from eval.statistics import holm

_DRAWS = 999
_LEVEL = 0.01
_GAIN = 0.1  # share of patients that the site must tell right beyond what the commonest state does


def by_site(
    sites: np.ndarray, states: np.ndarray, subjects: np.ndarray, names: Sequence[str], seed: int = 0
) -> list[str]:
    """Return a sentence for each label that patients' sites tell; sites are not named.

    sites, subjects  (U,); "" is an unknown site; states (U, O) 1, 0, or −1 where unknown, O labels by `names`
    A label is told where guessing each site's commonest state is right in 10 % more patients than guessing the
    commonest of all, and more often so than with sites shuffled between patients (p < 0.01 after Holm's correction).
    """
    found = list(_told(sites, states, subjects, np.random.default_rng(seed)))
    p = holm.adjusted([each[2] for each in found])
    return [
        f"the site alone tells {name} in {right:.0%} of the patients ({plain:.0%} without it): they are mixed up"
        for name, (right, plain, _), corrected in zip(names, found, p)
        if corrected < _LEVEL and right - plain >= _GAIN
    ]


def _told(
    sites: np.ndarray, states: np.ndarray, subjects: np.ndarray, generator: np.random.Generator
) -> Iterator[tuple[float, float, float]]:
    """Yield for each label: share right by site, share right without, p by permutation."""
    patients, first, owner = np.unique(subjects, return_index=True, return_inverse=True)
    place = sites[first]
    for column in states.T:
        known = column >= 0
        count = np.bincount(owner[known], minlength=len(patients))
        share = np.bincount(owner[known], column[known], minlength=len(patients)) / np.maximum(count, 1)
        there = (count > 0) & (place != "")
        label, codes = share[there] >= 0.5, np.unique(place[there], return_inverse=True)[1]
        if not there.any() or codes.max() < 1 or label.all() or not label.any():
            yield 0.0, 0.0, 1.0
            continue
        right = _right(codes, label)
        chance = np.array([_right(codes, generator.permutation(label)) for _ in range(_DRAWS)])
        yield right, max(label.mean(), 1 - label.mean()), float((1 + (chance >= right - 1e-12).sum()) / (_DRAWS + 1))


def _right(codes: np.ndarray, label: np.ndarray) -> float:
    """Return the share of patients whose label is the commonest one of their site."""
    total, yes = np.bincount(codes), np.bincount(codes, label)
    return float(np.maximum(yes, total - yes).sum() / len(codes))
