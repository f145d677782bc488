"""Intervals by resampling patients, not slices: slices of one patient are not independent.

The calibration error is a sum of absolute gaps, which chance widens: it is larger in a sample than in the population
(0.037 instead of 0 for a calibrated classifier, 30 patients of 40 slices), and larger again in a resample of the
sample. That second excess is known, the mean of the resamples minus the figure, and is taken off them. The interval
is then that of the figure which test sets of this size give; the first excess stays in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.statistics import metrics
from eval.statistics.predictions import Resampled

_CHUNK = 250  # resamples at a time
_LEVEL = (2.5, 97.5)
_CENTRED = ("ece",)  # see above


@dataclass(frozen=True)
class Figure:
    """A figure with its interval (percentiles 2.5 and 97.5) and the patients that it rests on.

    fits       how often the probe was fitted (draws of few-shot); spread: standard deviation of the figure over them
    p          two-sided p-value that a difference is zero; None for a figure alone
    """

    value: float
    low: float
    high: float
    patients: int
    fits: int = 1
    spread: float = 0.0
    p: float | None = None

    def row(self) -> dict[str, float | int | None]:
        """Return the figure for JSON: null where there is none (an organ that all test slices show, or none does)."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        row = {key: value if np.isfinite(value) else None for key, value in numbers.items()}
        row["patients"] = self.patients
        if self.fits > 1:
            row |= {"fits": self.fits, "spread": self.spread if np.isfinite(self.spread) else None}
        return row if self.p is None else row | {"p": self.p}


def shown(row: dict, sign: str = "") -> tuple[str, str]:
    """Return a row's figure and interval as text."""
    if row["value"] is None:
        return "–", "no figure"
    if row["low"] is None:
        return f"{row['value']:{sign}.3f}", "no interval"
    return f"{row['value']:{sign}.3f}", f"{row['low']:{sign}.3f} to {row['high']:{sign}.3f}"


def shown_p(row: dict) -> str:
    """Return a row's p-value as text; none where there is no figure."""
    if row["value"] is None:
        return "–"
    return f"{row['p']:.3f}" if row["p"] >= 0.0005 else "< 0.001"


def resamples(patients: int, draws: int, seed: int) -> np.ndarray:
    """Return (draws, patients) how often each patient is in each resample; a pure function of its arguments."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(patients, np.full(patients, 1 / patients), size=draws)


def figures(prediction: Resampled, metric: str, draws: int, seed: int) -> dict[str, Figure]:
    """Return the figure of every name and, where there are several, their average `macro`; else `all` alone."""
    patients, whole, drawn = _resampled(prediction, metric, draws, seed)
    drawn = np.maximum(drawn, 0) if metric in _CENTRED else drawn
    return _named(prediction, whole, drawn, len(patients))


def differences(one: Resampled, other: Resampled, metric: str, draws: int, seed: int) -> dict[str, Figure]:
    """Return figures of `other` minus those of `one` on the same patients and resamples.

    Raises ValueError where the two do not rest on the same patients.
    """
    whole, drawn, patients = _paired(one, other, metric, draws, seed)
    return _named(one, whole, drawn, patients, paired=True)


def drawn_differences(
    one: Resampled, other: Resampled, metric: str, draws: int, seed: int
) -> tuple[float, np.ndarray, int]:
    """Return the average over names of `other` minus `one`, its (draws,) resamples, and the number of patients.

    Resample r is the same for every pair of the same patients, so that several differences can be judged together.
    Raises ValueError where the two do not rest on the same patients.
    """
    whole, drawn, patients = _paired(one, other, metric, draws, seed)
    return float(_mean(whole)[0, -1]), drawn[:, -1], patients


def _paired(one: Resampled, other: Resampled, metric: str, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (fits, T) differences of the whole, (draws, T) of the resamples, macro average last; and patients."""
    if set(one.subjects) != set(other.subjects):
        raise ValueError("the two probes rest on different patients; run both on the same shards and task")
    patients, first, first_drawn = _resampled(one, metric, draws, seed)
    _, second, second_drawn = _resampled(other, metric, draws, seed)
    count = min(len(first), len(second))
    whole = second[:count] - first[:count] if len(first) == len(second) else _mean(second) - _mean(first)
    return whole, second_drawn - first_drawn, len(patients)


def _resampled(prediction: Resampled, metric: str, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the patients, (fits, T) figures of the whole, (draws, T) figures of the resamples; macro average last."""
    patients, fits = np.unique(prediction.subjects), fits_of(prediction)
    whole = prediction.figures(metric, np.ones((fits, len(patients))), patients, np.arange(fits))
    counts, which = resamples(len(patients), draws, seed), np.arange(draws) % fits
    parts = [
        prediction.figures(metric, counts[at : at + _CHUNK], patients, which[at : at + _CHUNK])
        for at in range(0, draws, _CHUNK)
    ]
    whole, drawn = _with_macro(whole), _with_macro(np.concatenate(parts))
    if metric in _CENTRED:
        drawn = drawn + _mean(whole) - metrics.macro(drawn.T)
    return patients, whole, drawn


def fits_of(prediction: Resampled) -> int:
    """Return how many fits a prediction has."""
    binned = getattr(prediction, "positive", None)
    if binned is not None:
        return len(binned) if binned.ndim == 3 else 1
    held = getattr(prediction, "scores", None)
    if held is None:
        held = next(iter(getattr(prediction, "values", {}).values()), np.zeros(1))
    return len(held)


def _with_macro(table: np.ndarray) -> np.ndarray:
    return np.concatenate([table, metrics.macro(table)[:, None]], axis=1) if table.shape[1] > 1 else table


def _named(
    prediction: Resampled, whole: np.ndarray, drawn: np.ndarray, patients: int, paired: bool = False
) -> dict[str, Figure]:
    names = [*prediction.names, "macro"] if whole.shape[1] > 1 else ["all"]
    values = _mean(whole)
    spreads = whole.std(axis=0, ddof=1) if len(whole) > 1 else np.zeros(whole.shape[1])
    return {
        name: _figure(value, column, patients, len(whole), spread, paired)
        for name, value, column, spread in zip(names, values[0], drawn.T, spreads)
    }


def _mean(whole: np.ndarray) -> np.ndarray:
    return metrics.macro(whole.T)[None]


def _figure(value: float, drawn: np.ndarray, patients: int, fits: int, spread: float, paired: bool) -> Figure:
    known = drawn[~np.isnan(drawn)]
    low, high = np.percentile(known, _LEVEL) if len(known) and patients > 1 else (np.nan, np.nan)
    p = None
    if paired:  # twice the share of resamples on the other side of zero; never 0, as the draws are finite
        beyond = min((known <= 0).sum(), (known >= 0).sum())
        p = float(min(1.0, 2 * (beyond + 1) / (len(known) + 1))) if len(known) else 1.0
    return Figure(float(value), float(low), float(high), patients, fits, float(spread), p)
