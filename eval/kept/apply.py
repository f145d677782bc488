"""A kept head on new patients, one at a time: scores of slices or series as rows, drawn structures as masks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.config import TaskConfig
from eval.contract import Fitted
from eval.data import features, images
from eval.data.cohorts import Base, Cohort
from eval.data.examples import Examples
from eval.encoders import colours
from eval.encoders.encoder import FrozenEncoder
from eval.kept import calibration
from eval.kept.head import StoredHead
from eval.networks import volume_scores
from eval.networks.segmentation import FittedSegmenter
from eval.probes import registry
from eval.reporting import results
from eval.statistics.predictions import Scored
from meddap.settings import SettingsError

_ROWS = 32  # slices at a time
FIRST = ("patient", "series", "slice", "status", "reason")  # columns of a table that say whose row it is


@dataclass(frozen=True)
class Applied:
    """A kept head ready for new patients: itself, its encoder and its task, whose machine settings are of today.

    cache  folder for the features of the patient at hand
    """

    stored: StoredHead
    fitted: Fitted
    encoder: FrozenEncoder
    task: TaskConfig
    cache: Path

    @property
    def draws(self) -> bool:
        """Whether it draws structures."""
        return isinstance(self.fitted, FittedSegmenter)

    def cohort(self, examples: Examples) -> Cohort:
        """Return a patient's slices as the head sees them: its names, nothing known of them."""
        head, count = self.stored.head, len(examples)
        width = {"survival": 2, "multiclass": 1, "retrieval": 1}.get(self.task.kind, len(head.names))
        drawn = head.values if self.task.kind == "segmentation" else ()
        known = replace(
            examples,
            names=head.names,
            values=drawn,
            ignored=head.ignored,
            targets=np.full((count, width), np.nan),
            annotated=np.ones((count, len(drawn)), bool),
        )
        needs, found = self.stored.probe.reads(self.task), None
        if needs != "images":
            blocks: tuple[int, ...] = ()
            if needs == "patches":
                blocks = registry.blocks([self.stored.probe], self.task, self.encoder.depth)
            found = features.extract(self.encoder, known, self.task, self.cache, blocks)
        channels = colours.of_images(self.encoder, self.task)
        base = Base(known, found, self.task, self.cache, self.encoder.window, head.sequences or None, channels)
        return Cohort("new", base, np.arange(count))

    def forget(self) -> None:
        """Remove what is kept on the disk of the patient at hand."""
        shutil.rmtree(self.cache, ignore_errors=True)


def columns(kind: str, names: tuple[str, ...], variant: Mapping[str, Any]) -> list[str]:
    """Return the names of a prediction's columns; a variant of the probe is named behind them."""
    own = {"survival": ["log hazard"], "anomaly": ["anomaly score"]}.get(kind, list(names))
    return [f"{'label ' if name in FIRST else ''}{name}{results.words(dict(variant))}" for name in own]


def scores(applied: Applied, cohort: Cohort) -> Iterator[dict[str, Any]]:
    """Yield a row for every slice or series: `patient`, `series`, `slice` where it is one, and its scores."""
    by_slice = applied.task.level == "slice"
    place = {key: row for row, key in enumerate(cohort.examples.keys if by_slice else cohort.examples.studies)}
    rows: dict[str, dict[str, Any]] = {}
    for outcome in applied.fitted.predict(cohort):
        prediction = outcome.prediction
        assert isinstance(prediction, Scored)  # drawn ones go through `drawn`; figures of patients are not kept
        titles = columns(prediction.kind, prediction.names, outcome.variant)
        better = calibration.apply(applied.stored.head.calibration, outcome.variant, prediction.scores[0])
        for number, (key, mine) in enumerate(zip(prediction.keys, prediction.scores[0])):
            if key not in rows:
                at = place[key]
                rows[key] = {"patient": str(cohort.examples.subjects[at]), "series": str(cohort.examples.studies[at])}
                rows[key] |= {"slice": int(cohort.examples.orders[at])} if by_slice else {}
            rows[key] |= dict(zip(titles, mine.tolist()))
            if better is not None:
                pairs = zip(titles, better[number].tolist())
                rows[key] |= {f"{title}, calibrated": value for title, value in pairs if not np.isnan(value)}
            if prediction.kind == "multiclass":
                likely = f"likeliest{results.words(dict(outcome.variant))}"
                rows[key][likely] = prediction.names[int(mine.argmax())]
    yield from rows.values()


@dataclass(frozen=True)
class DrawnSeries:
    """What a head drew in a series.

    masks    order → (O, H, W) bool of its slices, in the pictures' own pixels, each structure by its own threshold
    beyond   order → (H, W) uint8, the place plus 1 of the structure furthest above its threshold, 0 for none
    spacing  (row, column) in mm
    """

    series: str
    subject: str
    masks: dict[int, np.ndarray]
    beyond: dict[int, np.ndarray]
    spacing: tuple[float, float]


def drawn(applied: Applied, cohort: Cohort) -> Iterator[DrawnSeries]:
    """Yield every series of a patient. Raises SettingsError where its slices differ in shape."""
    fitted, examples = applied.fitted, cohort.examples
    assert isinstance(fitted, FittedSegmenter)
    limits = fitted.thresholds[:, None, None]
    for rows in volume_scores.studies(examples):
        masks: dict[int, np.ndarray] = {}
        beyond: dict[int, np.ndarray] = {}
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            for row, maps in zip(some, fitted.maps(cohort, some)):
                picture = examples.read(row)
                over = images.to_picture(maps, picture).numpy() - limits
                order = int(examples.orders[row])
                masks[order] = over > 0
                beyond[order] = np.where(over.max(axis=0) > 0, over.argmax(axis=0) + 1, 0).astype(np.uint8)
        if len({each.shape for each in masks.values()}) > 1:
            raise SettingsError("its slices differ in shape, so they are not a volume")
        first = examples.read(rows[0])
        spacing = float(first.spacing[0]), float(first.spacing[1])
        yield DrawnSeries(str(examples.studies[rows[0]]), str(examples.subjects[rows[0]]), masks, beyond, spacing)
