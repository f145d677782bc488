"""The choice of a checkpoint in words, as a table and as a curve over the steps of training."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from data_prep.figures import COLOURS, INK, STYLE, png
from eval.statistics.bootstrap import shown, shown_p
from eval.statistics.predictions import LOWER_IS_BETTER
from meddap.page import dim, figure
from pretrain.weights import chosen

_FEW = 10  # patients


def verdict(record: dict[str, Any]) -> list[str]:
    """Return the choice in sentences: what is chosen, what the test patients say, and what to bear in mind."""
    lines = []
    if record["beats_start"]:
        lines.append(f"{record['checkpoint']} is chosen.")
        for task in record["tasks"]:
            lines += [_on_validation(task, record["checkpoint"], "It"), _on_test(task)]
    else:
        count = len(record["tasks"][0]["validation"]) - 1
        lines.append(f"No milestone beats the start: keep the published weights ({record['start']}).")
        for task in record["tasks"]:
            lines += [_on_validation(task, record["best"], f"The best of {count}, {record['best']},"), _start(task)]
    return [*lines, f"Rule: {record['rule']}.", *(f"Note: {note}" for note in record.get("notes", []))]


def _on_validation(task: dict[str, Any], name: str, who: str) -> str:
    point = next(each for each in task["validation"] if each["checkpoint"] == name)
    what = f"{task['task']} ({task['probe']} {task['metric']})"
    return (
        f"{who} {_gains(point['gain'], point['gain_low'], point['gain_high'])} on {what}, "
        f"{point['patients']} validation patients."
    )


def _gains(gain: float, low: float | None, high: float | None) -> str:
    """Return a gain, larger is better, in words."""
    interval = f"{low:+.3f} to {high:+.3f}" if low is not None and high is not None else "no interval"
    word = "gains" if gain > 0 else "loses" if gain < 0 else "neither gains nor loses:"
    sure = low is not None and high is not None and (low > 0 or high < 0)
    return f"{word} {abs(gain):.3f} ({interval}{'' if sure else '; may be chance'})"


def _on_test(task: dict[str, Any]) -> str:
    test, gain = task["test"], task["test"]["gain"]
    before, after = (f"{test[name]['value']:.3f}" if test[name]["value"] is not None else "–" for name in _ENDS)
    sign = -1 if task["metric"] in LOWER_IS_BETTER else 1
    if gain["value"] is None or gain["low"] is None:
        said = "no interval, so nothing is settled"
    else:
        low, high = sorted((sign * gain["low"], sign * gain["high"]))
        said = "the gain is confirmed" if low > 0 else "it is a LOSS" if high < 0 else "the gain is not confirmed"
    few = f"; few patients ({gain['patients']}): p and interval are rough" if gain["patients"] < _FEW else ""
    times = max(test[name]["test_opened"] for name in _ENDS)
    opened = "opened once" if times == 1 else f"opened {times} times"
    return (
        f"Test, {gain['patients']} patients, {opened}: {before} before, {after} after "
        f"({' , '.join(shown(gain, '+')).replace(' ,', ',')}, p {shown_p(gain)}): {said}{few}."
    )


_ENDS = ("start", "chosen")


def _start(task: dict[str, Any]) -> str:
    value, interval = shown(task["test"]["start"])
    return f"The start on {task['test']['start']['patients']} test patients: {value} ({interval})."


def table(record: dict[str, Any]) -> str:
    """Return every milestone on validation patients as a Markdown table."""
    lines = ["| task | checkpoint | figure | validation | gain over the start | interval | p |", "|" + "---|" * 7]
    for task in record["tasks"]:
        for point in task["validation"]:
            mark = " ←" if point["checkpoint"] == record["checkpoint"] else ""
            gain = ("", "", "")
            if "gain" in point:
                row = {"value": point["gain"], "low": point["gain_low"], "high": point["gain_high"], "p": point["p"]}
                gain = (*shown(row, "+"), shown_p(row))
            figures = " | ".join([shown(point)[0], *gain])
            name = f"{task['probe']} {task['metric']}"
            lines.append(f"| {task['task']} | {point['checkpoint']}{mark} | {name} | {figures} |")
    return "\n".join(lines)


def curve(record: dict[str, Any]) -> bytes:
    """Draw each task's figure on validation patients over the steps of training, with intervals; the chosen marked."""
    tasks = record["tasks"]
    with plt.rc_context(STYLE):
        picture, axes = plt.subplots(
            2, len(tasks), figsize=(max(5.0, 4.2 * len(tasks)), 4.6), squeeze=False, sharex="col", layout="constrained"
        )
        for column, task in enumerate(tasks):
            points = [each for each in task["validation"] if each["value"] is not None]
            for axis, (value, low, high) in zip(axes[:, column], (("value", "low", "high"), _GAIN)):
                mine = [each for each in points if each.get(value) is not None]
                at = [each["seen"] for each in mine]
                axis.plot(at, [each[value] for each in mine], "o-", ms=4, lw=1.4, color=COLOURS[0])
                known = [each for each in mine if each[low] is not None]
                axis.fill_between(
                    [each["seen"] for each in known],
                    [each[low] for each in known],
                    [each[high] for each in known],
                    color=COLOURS[0],
                    alpha=0.15,
                    lw=0,
                )
                taken = [each for each in mine if each["checkpoint"] == record["checkpoint"]]
                axis.plot(
                    [each["seen"] for each in taken], [each[value] for each in taken], "o", ms=10, mfc="none", color=INK
                )
                axis.grid(alpha=0.2)
            axes[0, column].set(title=f"{task['task']}: {task['probe']}", ylabel=task["metric"])
            axes[1, column].xaxis.get_major_locator().set_params(integer=True)
            axes[1, column].axhline(0, color=INK, lw=0.8)
            axes[1, column].set(xlabel="steps of training", ylabel="gain over the start")
    return png(picture)


_GAIN = ("gain", "gain_low", "gain_high")


def folders_of(run: Path) -> list[Path]:
    """Return the folders of probes that a choice wrote, the start of each task before the chosen."""
    places = [task / name for task in sorted(run.glob("choose/*")) for name in _ENDS]
    return [place for place in places if (place / "results.jsonl").is_file()]


def section(run: Path) -> Iterator[str]:
    """Yield the choice of a run for its page: the verdict, then the curve; nothing where none was made."""
    if not (run / chosen.NAME).is_file():
        return
    record = chosen.read(run)
    yield "<h2>Which checkpoint</h2>"
    lines = verdict(record)
    yield f"<p><b>{html.escape(lines[0])}</b> {html.escape(' '.join(lines[1 : -1 - len(record['notes'])]))}</p>"
    for line in lines[-1 - len(record["notes"]) :]:
        yield dim(line)
    yield figure(
        curve(record),
        "Validation patients, over the steps of training; bands are 95 % intervals, those of the gain hold for all "
        "milestones at once; the ring is the checkpoint that is chosen.",
    )
