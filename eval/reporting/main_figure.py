"""The main figure of a task: the one probe and metric by which encoders are judged first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from eval.statistics.predictions import DEFAULT, LOWER_IS_BETTER, Prediction
from meddap.settings import SettingsError


@dataclass(frozen=True)
class MainFigure:
    """A probe, with its variant in words, and its metric."""

    probe: str
    metric: str

    def __str__(self) -> str:
        return f"{self.probe} {self.metric}"

    @property
    def sign(self) -> int:
        """1 where a larger figure is better, −1 where a smaller one is."""
        return -1 if self.metric in LOWER_IS_BETTER else 1


def metrics_of(kind: str, metrics: Sequence[str], main: str) -> list[str]:
    """Return what the main figure may be, the best first: that of `main`; else the task's metrics, then the kind's
    first one, and for structures that no probe draws how well their presence is told."""
    if main:
        return [main.rpartition("/")[2]]
    presence = DEFAULT["multilabel"][:1] if kind == "segmentation" else ()
    return [*metrics, DEFAULT[kind][0], *presence]


def wanted(main: str, probes: Iterable[str], metrics: Sequence[str] = ()) -> str:
    """Return the probe that `main` names, "" where it is empty. Raises SettingsError for one that the task lacks.

    metrics  those that the task's table is limited to; empty: all
    """
    probe, slash, metric = main.rpartition("/")
    if main and not (slash and probe and metric):
        raise SettingsError(f"main={main}: give PROBE/METRIC, e.g. main=knn/auroc")
    if main and probe.partition(" ")[0] not in probes:
        raise SettingsError(f"main={main}: the task has no probe {probe}; it has {', '.join(probes)}")
    if main and metrics and metric not in metrics:
        raise SettingsError(f"main={main}: the task's metrics are {', '.join(metrics)}; add {metric} to them")
    return probe


def find(
    kind: str, metrics: Sequence[str], main: str, predictions: Mapping[str, Prediction], skip: Iterable[str] = ()
) -> MainFigure | None:
    """Return the main figure of a task's predictions (probe and variant → prediction); None where none gives it.

    skip  probes that say nothing on an encoder (networks from scratch) and stand in for none unless `main` names them
    """
    probe = wanted(main, {name.partition(" ")[0] for name in predictions})
    for metric in metrics_of(kind, metrics, main):
        for name, prediction in predictions.items():
            mine = probe in (name, name.partition(" ")[0]) if probe else name.partition(" ")[0] not in skip
            if mine and metric in prediction.metrics():
                return MainFigure(name, metric)
    return None
