"""Which checkpoint of a run to take: chosen on validation patients, then the test opened once, for start and chosen.

    python -m eval.choose --run RUN --task eval/configs/quickstart.yaml data=SHARDS

RUN/chosen.json                        checkpoint, rule, figures, digest of each task; RUN:chosen names it
RUN/choose/TASK/validation/STAGE-STEP  predictions of the validation patients (eval.milestones)
RUN/choose/TASK/start, chosen          what eval.probe writes: results, predictions, heads, test_opened.jsonl
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eval import milestones, probe
from eval.config import TaskConfig
from eval.data import files
from eval.milestones import Milestone, Validated
from eval.reporting import choices, comparison, main_figure, results
from eval.statistics import bootstrap, choice, simultaneous
from eval.statistics.simultaneous import Together
from meddap import console
from meddap.disk import sole_writer
from meddap.errors import MeddapError
from meddap.settings import SettingsError, load
from pretrain.weights import chosen

NONE_BETTER = 3  # exit status with --strict
_LEVEL = 0.95


def run(folder: Path, tasks: Sequence[TaskConfig], main_task: str = "") -> dict[str, Any]:
    """Choose a checkpoint of a run; return the record that RUN/chosen.json keeps. Raises MeddapError.

    main_task  the task that decides; "": the only one, or all by mean rank
    """
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"--task: two tasks are named {twice[0]}; give one another name in its file")
    if bad := [name for name in names if not name or "/" in name or name.startswith(".")]:
        raise SettingsError(f"--task: name={bad[0]!r} cannot name a folder; give the task another name")
    if main_task and main_task not in names:
        raise SettingsError(f"--main {main_task}: no such task; there are {', '.join(names)}")
    main_task = main_task or (names[0] if len(names) == 1 else "")
    there, notes = milestones.of_run(folder)
    with sole_writer(folder / "choose"):
        found = {task.name: milestones.validated(folder, there, task, folder / "choose" / task.name) for task in tasks}
        compared = [each for each in there[1:] if all(each.name in one.scores for one in found.values())]
        if not compared:
            raise SettingsError(f"{folder}: no checkpoint has other weights than the start; train on")
        gains = {name: _gains(each, there[0], compared, len(tasks)) for name, each in found.items()}
        best, taken = choice.choose(gains, main_task)
        place = there[0] if taken is None else compared[taken]
        rows = [_row(each, there[0], compared, gains[each.task.name]) for each in found.values()]
        notes += list(dict.fromkeys(note for each in found.values() for note in each.notes))
        record: dict[str, Any] = {
            "rule": choice.rule(names, main_task if len(names) > 1 else ""),
            "beats_start": taken is not None,
            "start": there[0].name,
            "best": compared[best].name,
            "main": main_task,
            "notes": notes,
            "tasks": rows,
        }
        for row, each in zip(rows, found.values()):
            row["test"] = _test(folder / "choose" / each.task.name, there[0], None if taken is None else place, each)
        chosen.write(folder, place.place, record)
    return chosen.read(folder)


def _gains(found: Validated, start: Milestone, compared: Sequence[Milestone], tasks: int) -> Together:
    """Return the gains of milestones over the start on validation patients, larger is better, judged together."""
    task, figure = found.task, found.figure
    one = found.scores[start.name].prediction
    values, drawn, patients = [], [], 0
    for each in compared:
        other = found.scores[each.name].prediction
        value, resampled, patients = bootstrap.drawn_differences(one, other, figure.metric, task.draws, task.seed)
        if not np.isfinite(value):
            raise SettingsError(
                f"{task.data}: {figure.metric} has no figure on the validation patients (a class or structure is "
                "missing there); give them more patients, or another metric with main=PROBE/METRIC"
            )
        values.append(figure.sign * value)
        drawn.append(figure.sign * resampled)
    return simultaneous.judge(np.array(values), np.stack(drawn, axis=1), patients, 1 - (1 - _LEVEL) / tasks)


def _row(found: Validated, start: Milestone, compared: Sequence[Milestone], gains: Together) -> dict[str, Any]:
    """Return what the record keeps of a task: the curve over milestones, on validation patients."""
    task, figure = found.task, found.figure
    points = []
    for number, each in enumerate([start, *compared]):
        prediction = found.scores[each.name].prediction
        alone = list(bootstrap.figures(prediction, figure.metric, task.draws, task.seed).values())[-1]
        gain = {} if not number else _gain(gains, number - 1)
        points.append({"checkpoint": each.name, "seen": each.seen, **alone.row(), **gain})
    return {
        "task": task.name,
        "digest": hashlib.sha256(json.dumps(asdict(task), sort_keys=True).encode()).hexdigest(),
        "dataset": found.dataset,
        "probe": figure.probe,
        "metric": figure.metric,
        "validation": points,
    }


def _gain(gains: Together, number: int) -> dict[str, float | None]:
    columns = {"gain": gains.values, "gain_low": gains.low, "gain_high": gains.high, "p": gains.p}
    numbers = {name: float(column[number]) for name, column in columns.items()}
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}


def _test(folder: Path, start: Milestone, taken: Milestone | None, found: Validated) -> dict[str, Any]:
    """Open the test for start and chosen, unless that was done for them before; return their figures and the gain."""
    figure, shown = found.figure, {}
    for name, place in (("start", start), ("chosen", taken)):
        if place is None:
            continue
        output = folder / name
        if not _opened(output, found, place):
            console.say(f"{found.task.name}: the test patients are opened for the {name} ({place.name})")
            probe.run(str(place.place.path), found.task, output, folder / "cache")
        rows = [row for row in results.read_rows(output) if _is(row, figure)]
        shown[name] = {key: rows[-1][key] for key in ("value", "low", "high", "patients", "test_opened")}
    if taken is not None:
        rows = comparison.compare(folder / "start", folder / "chosen")
        mine = [row for row in rows if (row["probe"], row["metric"]) == (figure.probe, figure.metric)]
        shown["gain"] = {key: mine[-1][key] for key in ("value", "low", "high", "p", "patients")}
    return shown


def _is(row: dict[str, Any], figure: main_figure.MainFigure) -> bool:
    """Whether a row of results holds the main figure, over all labels."""
    same = row["probe"] + results.words(row["variant"]) == figure.probe and row["metric"] == figure.metric
    return same and row["label"] in results.HEADLINE


def _opened(output: Path, found: Validated, place: Milestone) -> bool:
    """Whether `output` holds the probes of these weights on this task and data."""
    try:
        rows, (task, _) = results.read_rows(output), results.read_predictions(output)
    except MeddapError:  # none there yet, or cut by a kill
        return False
    same = task == json.loads(json.dumps(asdict(found.task)))
    wanted = (found.scores[place.name].digest, found.dataset)
    return same and all((row.get("digest"), row.get("dataset")) == wanted for row in rows)


@console.command
def main(arguments: list[str] | None = None) -> int:
    parser = console.parser(
        "Choose which checkpoint of a run to take. Every kept teacher is probed on validation patients; the one with "
        "the largest lower bound of the gain over the start is chosen, then test patients are scored once, for start "
        "and chosen. Where none beats the start, the start stays chosen.",
        "Writes RUN/chosen.json; --checkpoint RUN:chosen then names the checkpoint for export, probe, embed and "
        "predict. A second start goes on from what is there.",
    )
    parser.add_argument("--run", required=True, type=Path, metavar="RUN", help="folder that pretrain.train wrote")
    parser.add_argument(
        "--task",
        required=True,
        action="append",
        metavar="FILE",
        help="the task as YAML, as of eval.probe; several times: by the mean rank over tasks",
    )
    parser.add_argument("--main", default="", metavar="NAME", help="of several tasks the one that decides")
    parser.add_argument("--strict", action="store_true", help="exit status 3 where no milestone beats the start")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change the tasks, e.g. data=SHARDS")
    options = parser.parse_intermixed_args(arguments)
    tasks = [load(TaskConfig, file, options.overrides) for file in options.task]
    with files.output_errors(options.run):
        record = run(options.run, tasks, options.main)
    console.show("\n".join([choices.table(record), "", *choices.verdict(record)]))
    return NONE_BETTER if options.strict and not record["beats_start"] else 0


if __name__ == "__main__":
    console.launch(main)
