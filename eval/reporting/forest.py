"""Forest plots: paired differences with their intervals, a row for each figure, a panel for each metric."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_prep.figures import STYLE, png
from eval.reporting.results import HEADLINE, with_unit
from eval.reporting.subgroup_table import Table
from eval.reporting.verdict import Verdict
from eval.statistics.predictions import LOWER_IS_BETTER

_GAIN, _LOSS, _NEITHER = "#0072b2", "#d55e00", "#666666"
_LEFT, _RIGHT = 0.34, 0.62  # of the width: names stand left of it, numbers right
_LINE, _BELOW = 1.6, 4.0  # height of a row in font sizes; rows below a panel for its axis
_NAME = 22  # letters of a name in one line


@dataclass(frozen=True)
class Row:
    """A difference `after` − `before`.

    group     what rows it stands with: probes, labels, subgroups
    name      of the row; metric, whose unit the difference has
    low, high its 95 % interval, None where there is none
    """

    group: str
    name: str
    metric: str
    value: float
    low: float | None
    high: float | None
    patients: int


def rows_of(compared: Sequence[dict[str, Any]], found: Verdict | None, table: Table | None) -> list[Row]:
    """Return the first metric of every probe, the main figure label by label, and the main figure by subgroup.

    compared  rows of comparison.compare for one pair; found: the verdict on it; table: its subgroups
    """
    first: dict[str, str] = {}
    for row in compared:
        first.setdefault(row["probe"], row["metric"])
    rows = [
        _row("probes", row["probe"], row)
        for row in compared
        if row["label"] in HEADLINE and row["metric"] == first[row["probe"]] and row["value"] is not None
    ]
    if found is None:
        return rows
    main, metric = found.row["probe"], found.row["metric"]
    rows += [
        _row(f"{main}: labels", row["label"], row)
        for row in compared
        if (row["probe"], row["metric"]) == (main, metric) and row["label"] not in HEADLINE and row["value"] is not None
    ]
    for gain in table.gains if table is not None else []:
        name = f"{gain.attribute} {gain.name}"
        rows.append(Row(f"{main}: subgroups", name, metric, gain.value, gain.low, gain.high, gain.patients))
    return rows


def of_tasks(found: Sequence[Verdict]) -> list[Row]:
    """Return the main figure of every verdict as a row."""
    several = len({each.after for each in found}) > 1
    return [
        _row("tasks", f"{each.task} ({each.after})" if several else each.task, each.row)
        for each in found
        if each.row["value"] is not None
    ]


def _row(group: str, name: str, row: dict[str, Any]) -> Row:
    return Row(group, name, row["metric"], row["value"], row["low"], row["high"], row["patients"])


def picture(rows: Sequence[Row]) -> bytes:
    """Draw the rows for a page; PNG."""
    with plt.rc_context(STYLE):
        return png(draw(rows, 6.4, 9))


def draw(rows: Sequence[Row], width: float, size: float) -> Figure:
    """Return the figure: points with intervals, filled where the interval lies on one side of zero, and the numbers.

    width  inches; size: points of the font
    """
    metrics = list(dict.fromkeys(row.metric for row in rows))
    named = len({row.group for row in rows}) > 1
    panels = [_lines([row for row in rows if row.metric == metric], named) for metric in metrics]
    total = sum(len(lines) + _BELOW for lines in panels)
    figure, top = plt.figure(figsize=(width, total * size * _LINE / 72)), 0.0
    for metric, lines in zip(metrics, panels):
        bottom = 1 - (top + len(lines)) / total
        axis = figure.add_axes((_LEFT, bottom, _RIGHT - _LEFT, len(lines) / total))
        _panel(axis, metric, lines, size)
        top += len(lines) + _BELOW
    return figure


def _lines(panel: Sequence[Row], named: bool) -> list[Row | str]:
    """Return rows, with the name of each group above them where groups are named."""
    found: list[Row | str] = []
    for group in dict.fromkeys(row.group for row in panel):
        found += [group] if named else []
        found += [row for row in panel if row.group == group]
    return found


def _panel(axis: plt.Axes, metric: str, lines: Sequence[Row | str], size: float) -> None:
    sign = -1 if metric in LOWER_IS_BETTER else 1
    axis.axvline(0, color=plt.rcParams["axes.edgecolor"], lw=0.7)
    for place, row in enumerate(lines):
        if isinstance(row, str):
            _name(axis, place, row, size, fontweight="bold")
            continue
        ends = None if row.low is None or row.high is None else sorted((sign * row.low, sign * row.high))
        colour = _NEITHER if ends is None or ends[0] <= 0 <= ends[1] else _GAIN if ends[0] > 0 else _LOSS
        if row.low is not None and row.high is not None:
            axis.plot([row.low, row.high], [place, place], color=colour, lw=1.3, solid_capstyle="butt")
        filled = "white" if colour == _NEITHER else colour
        marker = {_GAIN: "o", _LOSS: "s", _NEITHER: "D"}[colour]
        axis.plot(row.value, place, marker, ms=size / 1.9, mec=colour, mfc=filled, mew=0.9)
        _name(axis, place, row.name, size)
        interval = f" ({_short(row.low)} to {_short(row.high)})" if row.low is not None else ""
        numbers = _short(row.value) + interval
        axis.text(1.05, place, numbers, transform=axis.get_yaxis_transform(), va="center", fontsize=size * 0.9)
    axis.set(ylim=(len(lines) - 0.4, -0.6), yticks=[])
    axis.spines["left"].set_visible(False)
    axis.margins(x=0.08)
    axis.tick_params(labelsize=size * 0.93)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    better = "lower is better" if sign < 0 else "higher is better"
    axis.set_xlabel(f"difference in {with_unit(metric)}\n(after − before; {better})", fontsize=size)


def _name(axis: plt.Axes, place: int, name: str, size: float, **style: Any) -> None:
    """Write a name left of a panel, a long one in two smaller lines."""
    lines = textwrap.wrap(name, _NAME if len(name) <= _NAME else round(_NAME * 1.25), max_lines=2, placeholder=" …")
    left = 0.01 - _LEFT
    axis.text(
        left / (_RIGHT - _LEFT),
        place,
        "\n".join(lines),
        transform=axis.get_yaxis_transform(),
        va="center",
        fontsize=size if len(lines) == 1 and len(name) <= _NAME else size * 0.8,
        linespacing=0.95,
        **style,
    )


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:+.{digits}f}".replace("-", "−")
