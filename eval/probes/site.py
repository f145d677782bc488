"""How well frozen features tell the site (hospital or scanner) of new patients: what a probe could learn instead.

It asks the encoder, not the task, and is no row of the registry: a larger figure is no gain.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.data.cohorts import Cohort
from eval.probes import knn
from eval.statistics import bootstrap
from eval.statistics.predictions import Scored

METRIC = "balanced_accuracy"
_K = 20


def told(train: Cohort, test: Cohort) -> dict[str, Any] | None:
    """Return how well the nearest training units tell the sites of test units, with its interval over patients.

    Keys: value, low, high, patients, sites (of how many; chance is 1 / sites). Sites that training or test patients
    lack are left out; None where fewer than two are left.
    """
    known = sorted(({*train.sites.tolist()} & {*test.sites.tolist()}) - {""})
    if len(known) < 2:
        return None
    task = train.base.task
    here = np.isin(train.sites, known)
    wanted = (train.sites[here][:, None] == np.array(known)).astype(np.float64)
    there = np.isin(test.sites, known)
    # a site with more patients is no likelier for that: votes count by the share of a site's units that are near
    votes = knn.votes(train.pooled()[here], wanted, test.pooled()[there], [_K], task.knn.temperature)[_K]
    scores = votes / wanted.mean(axis=0)
    targets = np.searchsorted(known, test.sites[there])[:, None].astype(np.float64)
    names = tuple(f"site {number}" for number in range(1, len(known) + 1))
    found = Scored("multiclass", scores[None], targets, test.subjects[there], test.keys[there], names)
    figure = bootstrap.figures(found, METRIC, task.draws, task.seed)["all"]
    return figure.row() | {"sites": len(known)}
