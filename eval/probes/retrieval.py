"""Retrieval: how many of the images nearest to a test image share its class? recall@k, mean average precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.config import TaskConfig
from eval.contract import Choices, Context, Outcome
from eval.data.cohorts import Cohort
from eval.statistics.predictions import Tabled
from meddap.settings import SettingsError

_QUERIES = 512  # at a time


@dataclass(frozen=True)
class Gallery:
    """The images that are searched. Nothing is fitted and nothing chosen."""

    train: Cohort
    task: TaskConfig
    choices: Choices
    refitted: bool

    def predict(self, test: Cohort) -> list[Outcome]:
        config = self.task.retrieval
        gallery = self.train if config.gallery == "train" else test
        values = ranking_figures(
            test.pooled(),
            test.targets[:, 0],
            gallery.pooled(),
            gallery.targets[:, 0],
            config.k,
            excluded=None if config.gallery == "train" else test.subjects,
        )
        return [Outcome(Tabled({name: each[None, :, None] for name, each in values.items()}, test.subjects, ("all",)))]


def fit(train: Cohort, val: Cohort, context: Context) -> Gallery:
    """Return the gallery: the training patients (with `refit` the validation patients too), or the test patients."""
    config = context.task.retrieval
    if not config.k or min(config.k) < 1:
        raise SettingsError(f"retrieval.k={list(config.k)}: give numbers above 0")
    refit = context.task.refit and config.gallery == "train"
    return Gallery(train.plus(val) if refit else train, context.task, {"gallery": config.gallery}, refit)


def ranking_figures(
    queries: np.ndarray,
    wanted: np.ndarray,
    gallery: np.ndarray,
    classes: np.ndarray,
    ks: list[int],
    excluded: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Return (M,) figures by name: average precision `map`, and `recall@k`, 1 if one of the k nearest has the class.

    queries (M, D), wanted (M,) and gallery (G, D), classes (G,), NaN where unknown; excluded (M,): queries and gallery
    are the same images, and those of the query's own patient are left out. NaN where the gallery has none of the class.
    """
    ours, theirs = (
        each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (queries, gallery)
    )
    names = ["map", *(f"recall@{k}" for k in ks)]
    found = {name: np.full(len(queries), np.nan) for name in names}
    for start in range(0, len(queries), _QUERIES):
        rows = np.arange(start, min(start + _QUERIES, len(queries)))
        similarity = ours[rows] @ theirs.T
        hidden = np.isnan(classes)[None] | np.zeros((len(rows), 1), bool)
        if excluded is not None:
            hidden = hidden | (excluded[rows][:, None] == excluded[None])
        order = np.argsort(np.where(hidden, np.inf, -similarity), axis=1, kind="stable")
        right = np.take_along_axis((classes[None] == wanted[rows][:, None]) & ~hidden, order, axis=1)
        total, hits = right.sum(axis=1), np.cumsum(right, axis=1)
        precision = (hits / np.arange(1, right.shape[1] + 1) * right).sum(axis=1)
        known = (total > 0) & ~np.isnan(wanted[rows])
        found["map"][rows[known]] = precision[known] / total[known]
        for k in ks:
            found[f"recall@{k}"][rows[known]] = hits[known, min(k, right.shape[1]) - 1] > 0
    return found
