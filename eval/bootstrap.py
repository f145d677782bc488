"""Intervals by resampling patients, not slices: slices of one patient are no independent witnesses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval import metrics

_CHUNK = 250  # resamples at a time


@dataclass(frozen=True)
class Figure:
    """A figure with its interval (percentiles 2.5 and 97.5) and the patients that it rests on."""

    value: float
    low: float
    high: float
    patients: int

    def row(self) -> dict[str, float | int | None]:
        """For JSON: null where there is no figure (an organ that all test slices hold, or none)."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {key: value if np.isfinite(value) else None for key, value in numbers.items()} | {
            "patients": self.patients
        }


def shown(row: dict, sign: str = "") -> tuple[str, str]:
    """A row's figure and interval as text."""
    if row["value"] is None:
        return "–", "no figure"
    return tuple(text.format(**row) for text in (f"{{value:{sign}.3f}}", f"{{low:{sign}.3f}} to {{high:{sign}.3f}}"))


@dataclass(frozen=True)
class Presence:
    """Scores of a slice-level probe on test slices: scores (N, O), present (N, O) in {1, 0, −1}, subjects (N,)."""

    scores: np.ndarray
    present: np.ndarray
    subjects: np.ndarray

    def figures(self, counts: np.ndarray, patients: np.ndarray) -> np.ndarray:
        """(R, O) AUROC of every organ under (R, patients) resampling counts; unlabelled slices take no part."""
        columns = np.searchsorted(patients, self.subjects)
        found = []
        for organ in range(self.scores.shape[1]):
            known = self.present[:, organ] >= 0
            weights = counts[:, columns[known]]
            found.append(metrics.auroc(self.scores[known, organ], self.present[known, organ] == 1, weights))
        return np.stack(found, axis=1)


@dataclass(frozen=True)
class Overlap:
    """Dice of a segmentation probe: dice (patients, O), NaN where an organ is unlabelled; subjects (patients,)."""

    dice: np.ndarray
    subjects: np.ndarray

    def figures(self, counts: np.ndarray, patients: np.ndarray) -> np.ndarray:
        """(R, O) mean Dice of every organ over the patients in whom it is labelled."""
        table = self.dice[np.searchsorted(self.subjects, patients)]
        known = ~np.isnan(table)
        with np.errstate(invalid="ignore"):
            return (counts @ np.where(known, table, 0)) / np.where(counts @ known > 0, counts @ known, np.nan)


def resamples(patients: int, draws: int, seed: int) -> np.ndarray:
    """(draws, patients) how often each patient is in each resample; the same for the same seed and number."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(patients, np.full(patients, 1 / patients), size=draws)


def figures(predictions: Presence | Overlap, draws: int, seed: int) -> list[Figure]:
    """Figure of every organ and, last, of their macro average."""
    patients, drawn = _resampled(predictions, draws, seed)
    whole = _with_macro(predictions.figures(np.ones((1, len(patients))), patients))[0]
    return [_figure(value, column, len(patients)) for value, column in zip(whole, drawn.T)]


def differences(one: Presence | Overlap, other: Presence | Overlap, draws: int, seed: int) -> list[Figure]:
    """Figures of `other` minus those of `one` on the same patients and resamples.

    Raises ValueError where the two do not rest on the same patients.
    """
    if set(one.subjects) != set(other.subjects):
        raise ValueError("the two probes rest on different patients; run both on the same shards and task")
    patients, drawn = _resampled(one, draws, seed)
    single = np.ones((1, len(patients)))
    whole = _with_macro(other.figures(single, patients))[0] - _with_macro(one.figures(single, patients))[0]
    change = _resampled(other, draws, seed)[1] - drawn
    return [_figure(value, column, len(patients)) for value, column in zip(whole, change.T)]


def _resampled(predictions: Presence | Overlap, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    patients = np.unique(predictions.subjects)
    counts = resamples(len(patients), draws, seed)
    parts = [predictions.figures(counts[at : at + _CHUNK], patients) for at in range(0, draws, _CHUNK)]
    return patients, _with_macro(np.concatenate(parts))


def _with_macro(table: np.ndarray) -> np.ndarray:
    return np.concatenate([table, metrics.macro(table)[:, None]], axis=1)


def _figure(value: float, drawn: np.ndarray, patients: int) -> Figure:
    known = drawn[~np.isnan(drawn)]
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
    return Figure(float(value), float(low), float(high), patients)
