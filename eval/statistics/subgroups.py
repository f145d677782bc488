"""Figures of subgroups of the test patients, each against all others, judged together (max-T).

Every resample draws all patients once; a group's figure in it is that of the group's patients among those drawn. So all
groups of all attributes rest on the same resamples, and how many are looked at is corrected for exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from eval.statistics import bootstrap, metrics, simultaneous
from eval.statistics.predictions import LOWER_IS_BETTER, Resampled

UNKNOWN = "unknown"
Membership = Mapping[str, Mapping[str, str]]  # attribute → patient → value


@dataclass(frozen=True)
class Group:
    """Patients with one value of an attribute.

    value, low, high  the figure with its plain interval
    gap, …, p         how much better it is than that of all others (negative: worse); simultaneous, p adjusted
    """

    attribute: str
    name: str
    patients: int
    value: float
    low: float
    high: float
    gap: float
    gap_low: float
    gap_high: float
    p: float


@dataclass(frozen=True)
class Small:
    """A group with too few patients, or of patients whose value is unknown: named, not scored."""

    attribute: str
    name: str
    patients: int


def figures(
    prediction: Resampled, metric: str, members: Membership, least: int, draws: int, seed: int
) -> tuple[list[Group], list[Small]]:
    """Return every group that has, and leaves, `least` patients or more, and the others, which are not scored."""
    return _judged([prediction], lambda each: each[0], metric, members, least, draws, seed)


def gains(
    before: Resampled, after: Resampled, metric: str, members: Membership, least: int, draws: int, seed: int
) -> tuple[list[Group], list[Small]]:
    """Return the same of the differences `after` − `before`: whose figure gained more or less than the others'.

    Raises ValueError where the two do not rest on the same patients.
    """
    if set(before.subjects) != set(after.subjects):
        raise ValueError("the two probes rest on different patients; run both on the same shards and task")
    return _judged([before, after], lambda each: each[1] - each[0], metric, members, least, draws, seed)


def _judged(
    predictions: list[Resampled],
    joined: Callable[[list[np.ndarray]], np.ndarray],
    metric: str,
    members: Membership,
    least: int,
    draws: int,
    seed: int,
) -> tuple[list[Group], list[Small]]:
    patients = np.unique(predictions[0].subjects)
    masks, small = _masks(patients, members, least)
    if not masks:
        return [], small
    sign = -1 if metric in LOWER_IS_BETTER else 1
    counts = np.concatenate([np.ones((1, len(patients))), bootstrap.resamples(len(patients), draws, seed)])

    def of(mask: np.ndarray) -> np.ndarray:
        """(1 + draws,) figures of some patients: of the whole, then of the resamples."""
        return joined([_macro(each, metric, counts * mask, patients) for each in predictions])

    mine = np.stack([of(mask) for mask in masks.values()], axis=1)
    gaps = sign * (mine - np.stack([of(~mask) for mask in masks.values()], axis=1))
    sizes = np.array([min(mask.sum(), (~mask).sum()) for mask in masks.values()])
    told = simultaneous.judge(gaps[0], gaps[1:], sizes)
    found = []
    for place, ((attribute, name), mask) in enumerate(masks.items()):
        known = mine[1:, place][~np.isnan(mine[1:, place])]
        low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
        gap = (float(each[place]) for each in (told.values, told.low, told.high, told.p))
        found.append(Group(attribute, name, int(mask.sum()), float(mine[0, place]), float(low), float(high), *gap))
    return found, small


def _masks(
    patients: np.ndarray, members: Membership, least: int
) -> tuple[dict[tuple[str, str], np.ndarray], list[Small]]:
    """Return (P,) masks of the groups that are scored, and the others."""
    masks, small = {}, []
    for attribute, values in members.items():
        mine = np.array([values.get(str(patient), UNKNOWN) for patient in patients])
        for name in np.unique(mine).tolist():
            mask = mine == name
            if name == UNKNOWN or min(mask.sum(), (~mask).sum()) < least:
                small.append(Small(attribute, name, int(mask.sum())))
            else:
                masks[attribute, name] = mask
    return masks, small


def _macro(prediction: Resampled, metric: str, counts: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return (R,) figures averaged over names; the first row is the whole, which all fits share alike."""
    fits = bootstrap.fits_of(prediction)
    whole = prediction.figures(metric, np.repeat(counts[:1], fits, axis=0), patients, np.arange(fits))
    drawn = prediction.figures(metric, counts[1:], patients, np.arange(len(counts) - 1) % fits)
    return np.concatenate([metrics.macro(metrics.macro(whole).T[None]), metrics.macro(drawn)])
