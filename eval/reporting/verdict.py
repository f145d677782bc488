"""The verdict on two probed encoders in plain language: gain or loss, how sure, above which floor, and what to beware.

A loss is said as loudly as a gain. What is called real holds for one question where it is the main figure, and after
Holm's correction where it is one of the other figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eval.encoders import windows
from eval.probes import registry
from eval.reporting import beside, comparison, main_figure, results
from eval.reporting.results import HEADLINE, words
from eval.statistics import holm
from eval.statistics.bootstrap import shown, shown_p
from eval.statistics.predictions import LOWER_IS_BETTER
from meddap.errors import MeddapError

FEW = 10  # patients, below which p-values and intervals are rough
_LEVEL = 0.05
_ECE = 0.05  # a calibration error whose whole interval lies above it is worth a word
_SHOWN = 3  # of many things, the first so many are named
Call = Literal["GAIN", "LOSS", "no difference shown"]
_LEAKS = {
    "by_id": "were patients of pretraining",
    "by_pixels": "have slices with the very pixels of pretraining's",
    "in_splits": "have slices with the very pixels of training or validation slices",
}


@dataclass(frozen=True)
class Verdict:
    """What is said of one task.

    task, before, after  names; folders: of before and after
    row      the main figure's difference, a row of comparison.compare; ends: its rows of results, before and after
    floor    the main figure's row of results of the pixels, and the row that compares them with `after`, where probed
    gained, lost  rows of the other headline figures that are better or worse after Holm's correction; others: how many
    warnings sentences
    """

    task: str
    before: str
    after: str
    folders: tuple[Path, Path]
    row: dict[str, Any]
    ends: tuple[dict[str, Any], dict[str, Any]]
    floor: tuple[dict[str, Any], dict[str, Any]] | None
    gained: list[dict[str, Any]] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)
    others: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def call(self) -> Call:
        """What the main figure's interval says."""
        return call(self.row)

    def sentence(self) -> str:
        """Return the main figure in a sentence."""
        one, other = (shown(each)[0] for each in self.ends)
        value, interval = shown(self.row, "+")
        verb = {"GAIN": "is a GAIN", "LOSS": "is a LOSS", "no difference shown": "shows no difference"}[self.call]
        return (
            f"{self.task}: {self.after} against {self.before} {verb} by {name_of(self.row)}, {one} → {other} "
            f"({value}, 95 % interval {interval}, p {shown_p(self.row)}, {self.row['patients']} patients)"
        )

    def about_others(self) -> str:
        """Return in a sentence which of the other figures changed; losses first, by name."""
        if not self.others:
            return f"{self.task}: no other figure"
        parts = [
            f"{len(rows)} {word} ({_listed(rows)})" if rows else f"none {word.lower()}"
            for rows, word in ((self.lost, "LOST"), (self.gained, "gained"))
        ]
        return f"{self.task}: of {self.others} other figures {' and '.join(parts)}"

    def about_floor(self) -> str:
        """Return in words what the pixels alone give."""
        if self.floor is None:
            return "floor not measured"
        row, gap = self.floor
        said = {"GAIN": "above it", "LOSS": "BELOW it", "no difference shown": "not shown to be above it"}[call(gap)]
        return f"pixels {shown(row)[0]}: {self.after} is {said}"


def call(row: dict[str, Any]) -> Call:
    """Return what a row of differences says by its interval, or by its p-value where it has no interval."""
    if row["value"] is None:
        return "no difference shown"
    sign = -1 if row["metric"] in LOWER_IS_BETTER else 1
    if row["low"] is None:
        real = row["p"] < _LEVEL and row["metric"] == "mcnemar"
        return "no difference shown" if not real else "GAIN" if sign * row["value"] > 0 else "LOSS"
    low, high = sorted((sign * row["low"], sign * row["high"]))
    return "GAIN" if low > 0 else "LOSS" if high < 0 else "no difference shown"


def name_of(row: dict[str, Any]) -> str:
    """Return a figure's name: probe, metric and unit."""
    return f"{row['probe']} {results.with_unit(row['metric'])}"


def judge(
    before: Path, after: Path, rows: Sequence[dict[str, Any]] | None = None, floor: Path | None = None
) -> Verdict | None:
    """Return the verdict on two folders of probes of one task; None where they share no headline figure.

    rows   those of comparison.compare, where they are known
    floor  the folder of the pixels on the same task
    Raises MeddapError for folders that cannot be compared.
    """
    rows = comparison.compare(before, after) if rows is None else rows
    task, _ = results.read_predictions(after)
    headline = [row for row in rows if row["label"] in HEADLINE]
    main = _main(headline, task)
    if main is None:
        return None
    ends = _of(before, main, 1), _of(after, main, 0)
    rest = [row for row in headline if row is not main and row["value"] is not None]
    real = [row for row, p in zip(rest, holm.adjusted([row["p"] for row in rest])) if p < _LEVEL]
    calls = [(row, (row["value"] > 0) != (row["metric"] in LOWER_IS_BETTER)) for row in real]
    below = _floor(floor, after, main) if floor is not None else None
    return Verdict(
        task=task["name"],
        before=before.name,
        after=after.name,
        folders=(before, after),
        row=main,
        ends=ends,
        floor=below,
        gained=[row for row, better in calls if better],
        lost=[row for row, better in calls if not better],
        others=len(rest),
        warnings=_warnings(before, after, main, ends[1], below),
    )


def _main(headline: Sequence[dict[str, Any]], task: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row of the task's main figure; of two different probes, of the first metric that they share."""
    wanted = task.get("main") or ""
    probe = wanted.rpartition("/")[0]
    known = {row["probe"] for row in headline}
    for metric in [*main_figure.metrics_of(task["kind"], task["metrics"], wanted), *(r["metric"] for r in headline)]:
        for row in headline:
            if row["metric"] != metric or (probe in known and row["probe"] != probe):
                continue
            if row["probe"].partition(" ")[0] not in registry.SCRATCH or len(known) == 1:
                return row
    return next(iter(headline), None)


def _of(folder: Path, main: dict[str, Any], place: int) -> dict[str, Any]:
    """Return the row of results behind one end of a difference; `place` of a pair of two probes, "after − before"."""
    probe = main["probe"].split(" − ")[place] if " − " in main["probe"] else main["probe"]
    for row in results.read_rows(folder):
        name = row["probe"] + words(row["variant"])
        same = row["metric"] == main["metric"] and row["label"] == main["label"]
        if name == probe and same:
            return row
    return {"value": None, "low": None, "high": None, "patients": main["patients"]}


def _floor(folder: Path, after: Path, main: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the pixels' row of the main figure and its difference to `after`; None where they lack it."""
    try:
        rows = comparison.compare(folder, after)
    except MeddapError:  # other patients: no floor for these
        return None
    wanted = {"probe": main["probe"].split(" − ")[0], "metric": main["metric"], "label": main["label"]}
    gap = next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)
    return (_of(folder, main, 0), gap) if gap is not None else None


def _warnings(
    before: Path, after: Path, main: dict[str, Any], end: dict[str, Any], floor: tuple[Any, Any] | None
) -> list[str]:
    """Return what to bear in mind before the verdict is repeated to others."""
    said = []
    if main["patients"] < FEW:
        said.append(f"few patients ({main['patients']}): p-values and intervals are rough")
    for folder in (before, after):
        rows = results.read_rows(folder)
        leaks: dict[str, Any] = next((row["leaks"] for row in rows if row.get("leaks")), {})
        for key, text in _LEAKS.items():
            if leaks.get(key):
                said.append(f"LEAK: {leaks[key]} test patients of {folder.name} {text}")
        if leaks.get("unchecked"):
            said.append(f"{folder.name}: not checked against pretraining: {leaks['unchecked']}")
        if (opened := max((row.get("test_opened", 1) for row in rows), default=1)) > 1:
            said.append(f"{folder.name}: its test patients were looked at {opened} times")
    rows = results.read_rows(after)
    said += list(dict.fromkeys(text for row in rows for text in row.get("confounded", [])))
    bad = [row for row in rows if row["metric"] == "ece" and row["label"] in HEADLINE and (row["low"] or 0) > _ECE]
    if bad:
        text = ", ".join(f"{row['probe']}{words(row['variant'])} by {row['value']:.2f}" for row in bad[:_SHOWN])
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        said.append(f"uncalibrated probabilities of {after.name} (ece): {text}{more}")
    said += [text] if (text := _unfair(before, after)) else []
    if floor is not None and call(floor[1]) != "GAIN":
        said.append(f"{after.name} is not shown to be above the floor of pixels")
    return list(dict.fromkeys(said))


def about_windows(before: Path, after: Path) -> str:
    """Return in a sentence in which windows both encoders saw the images; "" where the results do not say it."""
    one, other = (windows.told(row) for row in _seen(before, after))
    if not one or not other:
        return ""
    if one == other:
        return f"Window: both saw {one}"
    return f"Window: {before.name} saw {one}, {after.name} {other}"


def _seen(before: Path, after: Path) -> list[dict[str, Any]]:
    """Return a row of results of each folder, for what it says of the window; {} where it has none."""
    return [next(iter(results.read_rows(folder)), {}) for folder in (before, after)]


def _unfair(before: Path, after: Path) -> str:
    """Return what to bear in mind where a fixed window of `before` may make the difference; ""."""
    one, other = (row.get("window") or {"hu": []} for row in _seen(before, after))
    if not one["hu"] or not other["hu"] or one["hu"] == other["hu"] or one["by"] not in ("encoder", "training", "task"):
        return ""
    return (
        "before and after saw other windows, which alone may make the difference; windows=[[LOW,HIGH],[LOW,HIGH]] "
        "lets validation patients choose one for each"
    )


def about_site(before: Path, after: Path) -> str:
    """Return in a sentence how well the features of both encoders tell the site; "" where that was not measured."""
    found = [
        next((row["site_told"] for row in results.read_rows(each) if row.get("site_told")), None)
        for each in (before, after)
    ]
    one, other = found
    if one is None or other is None or one["sites"] != other["sites"]:
        return ""
    figures = " → ".join("{} ({})".format(*shown(each)) for each in (one, other))
    chance = 1 / other["sites"]
    return (
        f"Site: {other['sites']} sites are told from the features of new patients with balanced accuracy {figures}, "
        f"{other['patients']} patients; chance is {chance:.2f}. {_sites_in_turn(before, after)}"
    )


def _sites_in_turn(before: Path, after: Path) -> str:
    """Return in a sentence, without its full stop, what both encoders give on sites that training had not."""
    if all(row.get("tested") == "site" for row in _seen(before, after)):
        return "Each site was tested by the patients of the others"
    one, other = beside.sites_in_turn(before), beside.sites_in_turn(after)
    if one is None or other is None:
        return "Sites that training had not: not measured, probe both again with split.by=site beside these"
    try:
        rows = comparison.compare(one, other)
        main = _main([row for row in rows if row["label"] in HEADLINE], results.read_predictions(other)[0])
    except MeddapError as error:
        return f"Sites that training had not: {error}"
    if main is None:
        return f"Sites that training had not: {other.name} and {one.name} share no figure"
    ends = " → ".join(shown(_of(folder, main, place))[0] for folder, place in ((one, 1), (other, 0)))
    value, interval = shown(main, "+")
    return (
        f"Each site in turn, by the patients of the others: {name_of(main)} {ends} ({value}, 95 % interval {interval}, "
        f"p {shown_p(main)}, {main['patients']} patients)"
    )


def _listed(rows: Sequence[dict[str, Any]]) -> str:
    some = ", ".join(f"{name_of(row)} {shown(row, '+')[0]}" for row in rows[:_SHOWN])
    return some + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")
