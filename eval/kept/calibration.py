"""How the probabilities of a kept head are to be read: a map to calibrated ones, fitted on validation patients.

Labels: a line on the logit of each (Platt 1999, with the targets that he smooths); classes: one temperature (Guo et
al., arXiv 1706.04599). Both keep the order of the units, so that no figure of ranks changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import optimize

from eval.config import TaskConfig
from eval.contract import Outcome
from eval.statistics import bootstrap
from eval.statistics.predictions import Scored

LABELS, CLASSES = ("binary", "multilabel"), "multiclass"
_EDGE = 1e-7  # from 0 and 1, where a logit ends
_FEWEST = 5  # units with and without a label by which it is calibrated


def fit(outcomes: Sequence[Outcome]) -> tuple[dict[str, Any], ...]:
    """Return the calibration of each prediction of validation patients that gives probabilities, JSON.

    variant  of the probe; units: how many it was fitted on; then `temperature`, or `slopes` and `intercepts` by label,
    null where validation patients show fewer than five units with the label or without it
    """
    found: list[dict[str, Any]] = []
    for outcome in outcomes:
        prediction = outcome.prediction
        if not isinstance(prediction, Scored) or prediction.kind not in (*LABELS, CLASSES):
            continue
        scores = prediction.scores[0]
        mine: dict[str, Any] = {"variant": outcome.variant, "units": len(prediction.keys)}
        if prediction.kind == CLASSES:
            known = ~np.isnan(prediction.targets[:, 0])
            if known.sum() >= 2 * _FEWEST:
                found.append(mine | {"temperature": _temperature(scores[known], prediction.targets[known, 0])})
            continue
        lines = [_line(scores[:, column], prediction.targets[:, column]) for column in range(scores.shape[1])]
        if any(lines):
            slopes, intercepts = ([line[place] if line else None for line in lines] for place in (0, 1))
            found.append(mine | {"slopes": slopes, "intercepts": intercepts})
    return tuple(found)


def apply(maps: Sequence[Mapping[str, Any]], variant: Mapping[str, Any], scores: np.ndarray) -> np.ndarray | None:
    """Return calibrated (…, T) probabilities of a variant, NaN for labels that are not; None where nothing is."""
    mine = next((each for each in maps if each["variant"] == variant), None)
    if mine is None:
        return None
    if "temperature" in mine:
        logits = np.log(np.clip(scores, _EDGE, 1)) / mine["temperature"]
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return shares / shares.sum(axis=-1, keepdims=True)
    slopes, intercepts = (np.array(mine[name], np.float64) for name in ("slopes", "intercepts"))
    return _sigmoid(slopes * _logit(scores) + intercepts)


def calibrated(maps: Sequence[Mapping[str, Any]], outcome: Outcome) -> Scored | None:
    """Return a prediction with calibrated scores, those of labels that are not calibrated as they were."""
    prediction = outcome.prediction
    if not isinstance(prediction, Scored):
        return None
    found = apply(maps, outcome.variant, prediction.scores)
    return None if found is None else replace(prediction, scores=np.where(np.isnan(found), prediction.scores, found))


def figures(maps: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome], task: TaskConfig) -> list[dict]:
    """Return rows as those of results.jsonl: the calibration error of calibrated test predictions, over all labels."""
    rows = []
    for outcome in outcomes:
        if (prediction := calibrated(maps, outcome)) is not None:
            found = bootstrap.figures(prediction, "ece", task.draws, task.seed)
            label = "macro" if "macro" in found else next(iter(found))
            shared = {"metric": "ece, calibrated", "label": label, "variant": outcome.variant}
            rows.append({**shared, **found[label].row()})
    return rows


def _line(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float] | None:
    """Return slope (not below 0) and intercept on the logit of a label; None for too few units."""
    known = ~np.isnan(targets)
    logits, there = _logit(scores[known]), targets[known] > 0
    with_it, without = int(there.sum()), int((~there).sum())
    if min(with_it, without) < _FEWEST:
        return None
    wanted = np.where(there, (with_it + 1) / (with_it + 2), 1 / (without + 2))

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        at = line[0] * logits + line[1]
        off = _sigmoid(at) - wanted
        return float((np.logaddexp(0, at) - wanted * at).sum()), np.array([(off * logits).sum(), off.sum()])

    found = optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)])
    return float(found.x[0]), float(found.x[1])


def _temperature(scores: np.ndarray, classes: np.ndarray) -> float:
    logits, place = np.log(np.clip(scores, _EDGE, 1)), classes.astype(np.int64)

    def loss(power: float) -> float:
        sharp = logits / np.exp(power)
        total = np.logaddexp.reduce(sharp, axis=1)
        return float((total - sharp[np.arange(len(place)), place]).sum())

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def _logit(scores: np.ndarray) -> np.ndarray:
    inside = np.clip(scores, _EDGE, 1 - _EDGE)
    return np.log(inside) - np.log1p(-inside)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -700, 700)))
