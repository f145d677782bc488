"""Training patients fit a probe, validation patients are predicted: by this checkpoints and windows are chosen.

The figures are optimistic, since the same validation patients choose the probe's settings, equally so for all that are
compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.config import TaskConfig
from eval.contract import Context, Outcome
from eval.data import features
from eval.data.cohorts import Base, Cohort
from eval.data.examples import Examples
from eval.data.splits import Fold
from eval.encoders import colours, encoder, windows
from eval.encoders.encoder import FrozenEncoder
from eval.probes import registry
from eval.reporting import main_figure, results
from eval.reporting.main_figure import MainFigure
from eval.statistics import bootstrap
from eval.statistics.predictions import Prediction
from meddap.settings import SettingsError


@dataclass(frozen=True)
class Windowed:
    """An encoder in the window that serves the validation patients best.

    figure      probe and metric by which that was decided; value: what it is there
    outcomes    of that probe; prediction: the one of the main figure
    tried       windows and their values, where there were several
    """

    encoder: FrozenEncoder
    figure: MainFigure
    value: float
    outcomes: list[Outcome]
    prediction: Prediction
    tried: tuple[tuple[tuple[float, float], float], ...] = ()

    def line(self) -> str:
        """Return in a sentence which window was chosen, by which figures."""
        every = ", ".join(f"{windows.shown(pair)} HU {value:.3f}" for pair, value in self.tried)
        return f"window: {windows.shown(self.encoder.window)} HU, by {self.figure} on validation patients ({every})"


def best(
    frozen: FrozenEncoder,
    task: TaskConfig,
    examples: Examples,
    fold: Fold,
    cache: Path,
    blocks: Sequence[int] = (),
    figure: MainFigure | None = None,
) -> Windowed:
    """Return the encoder in the best of the task's windows; as it is where the task names none to choose between.

    blocks  counted from 0, whose patch features are extracted as well as those that the probe reads
    figure  by which is compared, where it is known
    Of equal windows the first one is taken. Raises SettingsError where no probe gives the task's main figure, or it
    cannot be computed for any window.
    """
    several = task.windows if task.windows_as == "choice" else []
    found: list[Windowed] = []
    for one in [encoder.with_window(frozen, pair) for pair in several] or [frozen]:
        found.append(_validated(one, task, examples, fold, cache, blocks, figure))
        figure = found[0].figure
    tried = tuple((pair, each.value) for pair, each in zip(windows.pairs(several), found))
    scores = [each.figure.sign * each.value for each in found]
    if several and np.isnan(scores).all():
        raise SettingsError(
            f"{task.data}: {found[0].figure} has no figure on the validation patients, so no window can be chosen; "
            "give them more patients, another metric with main=PROBE/METRIC, or one window"
        )
    return replace(found[int(np.nanargmax(scores)) if several else 0], tried=tried)


def _validated(
    frozen: FrozenEncoder,
    task: TaskConfig,
    examples: Examples,
    fold: Fold,
    cache: Path,
    blocks: Sequence[int],
    figure: MainFigure | None,
) -> Windowed:
    probes = [figure.probe.partition(" ")[0]] if figure else _candidates(task, frozen)
    outcomes = {probe: _predicted(probe, frozen, task, examples, fold, cache, blocks) for probe in probes}
    predictions = {
        probe + results.words(each.variant): each.prediction for probe, found in outcomes.items() for each in found
    }
    skip = registry.SCRATCH if set(probes) - set(registry.SCRATCH) else ()
    main = figure or main_figure.find(task.kind, task.metrics, task.main, predictions, skip)
    if main is None:
        metrics = " or ".join(main_figure.metrics_of(task.kind, task.metrics, task.main))
        raise SettingsError(f"{task.name}: no probe of {', '.join(task.probes)} gives {metrics}; see main=PROBE/METRIC")
    mine = predictions[main.probe]
    value = list(bootstrap.figures(mine, main.metric, 1, task.seed).values())[-1].value
    return Windowed(frozen, main, value, outcomes[main.probe.partition(" ")[0]], mine)


def _candidates(task: TaskConfig, frozen: FrozenEncoder) -> list[str]:
    """Return the probes that may give the main figure: the one that `main` names, else all that read an encoder, else
    all."""
    if known := main_figure.wanted(task.main, task.probes):
        return [known.partition(" ")[0]]
    reading = [name for name in task.probes if name not in registry.SCRATCH] or list(task.probes)
    return list(registry.answerable(registry.find(reading, task.kind, task.level), frozen)[0])


def _predicted(
    probe: str,
    frozen: FrozenEncoder,
    task: TaskConfig,
    examples: Examples,
    fold: Fold,
    cache: Path,
    blocks: Sequence[int],
) -> list[Outcome]:
    """Fit one probe on training patients; return what it predicts for the validation patients."""
    task = replace(task, probes=[probe], refit=False)
    row = registry.find(task.probes, task.kind, task.level)[probe]
    needs, found = row.reads(task), None
    if needs != "images":
        own = registry.blocks([row], task, frozen.depth) if needs == "patches" else ()
        found = features.extract(frozen, examples, task, cache, tuple(sorted({*own, *blocks})))
    base = Base(examples, found, task, cache, frozen.window, channels=colours.of_images(frozen, task))
    train, val = (Cohort(name, base, fold.rows[name]) for name in ("train", "val"))
    return list(row.fit(train, val, Context(task, frozen, cache)).predict(val))
