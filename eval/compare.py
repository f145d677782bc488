"""Paired difference of two probed encoders, or of two probes, on the same patients.

python -m eval.compare --runs BEFORE AFTER --output comparison.jsonl
python -m eval.compare --runs RUN RUN --probes segmentation lora
python -m eval.compare --runs BEFORE AFTER --elsewhere TASK.yaml data=DIR --floor PIXELS
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from eval import probe
from eval.config import TaskConfig
from eval.data import files
from eval.encoders import encoder, windows
from eval.reporting import beside, comparison, published, results, verdict, verdict_page
from eval.statistics import bootstrap
from meddap import console, disk
from meddap.settings import SettingsError, load, merge


def table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| probe | metric | label | difference | 95 % interval | p | patients |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        figure = " | ".join(bootstrap.shown(row, "+"))
        probe = f"{row['task']}: {row['probe']}" if row.get("elsewhere") else row["probe"]
        names = " | ".join([probe, results.with_unit(row["metric"]), row["label"]])
        lines.append(f"| {names} | {figure} | {bootstrap.shown_p(row)} | {row['patients']} |")
    return "\n".join(lines)


def _same_encoders(*pairs: tuple[Path, Path]) -> None:
    """Raise SettingsError where two folders do not probe the same weights, as far as their results say."""
    for here, there in pairs:
        one, other = ({str(row.get("encoder")) for row in results.read_rows(folder)} for folder in (here, there))
        if one != other:
            names = " and ".join(sorted(other)), " and ".join(sorted(one))
            raise SettingsError(
                f"--elsewhere {there}: probes {names[0]}, but {here} {names[1]}; probe the same checkpoint there"
            )


def _said(before: Path, after: Path, floor: Path | None, rows: list[dict] | None = None) -> list[str]:
    """Return the verdict as lines; a line on why there is none where a folder has predictions and no results.

    floor  the folder of the pixels; None: the one beside `after`, where there is one
    """
    if missing := [folder for folder in (before, after) if not (folder / "results.jsonl").is_file()]:
        return [f"No verdict: {missing[0]}: has no results.jsonl; probe again"]
    found = verdict.judge(before, after, rows, floor or beside.floor(after))
    return verdict_page.lines(found) if found is not None else []


def _floor(place: Path, after: Path) -> Path:
    """Return the folder of the pixels on the task of `after`, probed now where `place` has no results yet."""
    if not (place / "results.jsonl").is_file():
        task = _task_of(after)
        console.say(f"{place}: probing the pixels on {task.name}, the floor")
        probe.run(beside.PIXELS, task if task.windows_as == "choice" else replace(task, windows_as="choice"), place)
    rows = results.read_rows(place)
    if {str(row.get("encoder")) for row in rows} != {beside.PIXELS}:
        raise SettingsError(f"--floor {place}: probes {rows[0].get('encoder')}, not the pixels; name another folder")
    return place


def _task_of(folder: Path) -> TaskConfig:
    """Return the task that a folder of probes was made by."""
    return merge(TaskConfig, (str(folder / "predictions.npz"), results.read_predictions(folder)[0]))


def _away(words: list[str], before: Path, after: Path) -> tuple[Path, Path]:
    """Return the two folders of probes that `--elsewhere` names or, of a task, that lie beside `before` and `after`.

    Raises SettingsError for words that are neither, or where the encoders have changed since.
    """
    if not words[0].endswith((".yaml", ".yml")):
        if len(words) != 2:
            raise SettingsError(
                f"--elsewhere {' '.join(words)}: give two folders of probes, BEFORE AFTER, or TASK.yaml key=value …"
            )
        return Path(words[0]), Path(words[1])
    task = load(TaskConfig, words[0], words[1:])
    one, other = (_probed(folder, task) for folder in (before, after))
    return one, other


def _probed(folder: Path, task: TaskConfig) -> Path:
    """Return where the encoder of `folder` is probed on another task: TASK-FOLDER beside it, made where it lacks."""
    row, mine = next(iter(results.read_rows(folder)), {}), _task_of(folder)
    checkpoint, place = str(row.get("checkpoint", "")), folder.resolve().parent / f"{task.name}-{folder.name}"
    if not checkpoint:
        raise SettingsError(f"{folder}: does not say which checkpoint it probed; probe again")
    if checkpoint == "random":
        task = replace(task, like=mine.like, seed=mine.seed)
    if encoder.weights_digest(encoder.load(checkpoint, mine)) != row.get("weights"):
        raise SettingsError(f"--elsewhere: {checkpoint} has other weights now than {folder} probed; probe both again")
    if (place / "results.jsonl").is_file():
        if asdict(_task_of(place)) != asdict(windows.chosen(checkpoint, task)[0]):
            raise SettingsError(f"{place}: probes another task; give this one another name=, or remove that folder")
        return place
    console.say(f"{place}: probing {row.get('encoder')} on {task.name}")
    probe.run(checkpoint, task, place)
    return place


@console.command
def main(arguments: list[str] | None = None) -> int:
    parser = console.parser(
        "Say whether two probed encoders, or two probes, really differ: the difference on the same test patients, its "
        "95 % interval over resampled patients, and a p-value. Prints the verdict in words, then a table.",
        "BEFORE and AFTER are folders that eval.probe wrote for the same task; name one folder twice to compare two of "
        "its probes.",
    )
    parser.add_argument(
        "--runs", nargs=2, required=True, type=Path, metavar=("BEFORE", "AFTER"), help="the two folders"
    )
    parser.add_argument(
        "--probes", nargs=2, metavar=("BEFORE", "AFTER"), help="a probe of each; without it, each probe with itself"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON lines: a row per probe, metric and label")
    parser.add_argument(
        "--elsewhere",
        nargs="+",
        action="append",
        default=[],
        metavar="TASK",
        help="what was forgotten: TASK.yaml key=value …, a domain that was not adapted to, on which both encoders are "
        "probed; or two folders where they were, BEFORE AFTER; may be repeated",
    )
    parser.add_argument(
        "--floor",
        type=Path,
        metavar="DIR",
        help="results of --checkpoint pixels on the same task, made where there are none yet; without it, those that "
        "lie beside AFTER",
    )
    options = parser.parse_args(arguments)
    before, after = options.runs
    if options.output:
        with files.output_errors(options.output):
            disk.check_output(options.output)
    rows = comparison.compare(before, after, tuple(options.probes) if options.probes else None)
    own = list(rows)
    away = [_away(words, before, after) for words in options.elsewhere]
    floor = _floor(options.floor, after) if options.floor else None
    for mine, its in away:
        _same_encoders((before, mine), (after, its))
        for row in comparison.compare(mine, its):
            rows.append(row | {"task": results.read_predictions(its)[0]["name"], "elsewhere": True})
    if options.output:
        with files.output_errors(options.output):
            files.write_rows(options.output, rows)
    said = _said(before, after, floor, own)
    for mine, its in away:
        said += [f"Elsewhere: {line}" for line in _said(mine, its, None)]
    known = published.lines(after)
    console.show("\n".join([*said, "", table(rows), *(["", *known] if known else [])]).lstrip("\n"))
    return 0


if __name__ == "__main__":
    console.launch(main)
