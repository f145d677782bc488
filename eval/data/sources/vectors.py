"""Examples from vectors that were written before, with labels from a CSV by patient, study (series) or slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.schema import content_digest
from eval.config import TaskConfig
from eval.data.examples import Examples, Picture, flat
from eval.data.sources import table
from eval.encoders import stored_vectors
from meddap.settings import SettingsError


def load(task: TaskConfig, cache: Path) -> Examples:
    """Return a row for each vector that the table names; the others are left out. Keys are the vectors' places."""
    found = stored_vectors.read(task.data)
    count = len(found.values)
    numbers = np.char.zfill(np.arange(count).astype(np.str_), 8)
    examples = flat(
        numbers,
        np.zeros((count, 0)),
        [content_digest(row.view(np.uint32)[None, None]) for row in found.values],
        _no_picture,
        names=(),
        subjects=found.patients,
        studies=found.series,
        orders=found.orders,
        positions=found.orders.astype(np.float64),
    )
    return table.attach(examples, task)


def _no_picture(number: int) -> Picture:
    raise SettingsError("source=vectors: vectors hold no images; probes of images need the images")
