"""Probes of one frozen encoder: what its features know, on which patients, and how sure that is.

    python -m eval.probe --checkpoint RUN --task eval/configs/quickstart.yaml --output DIR data=SHARDS

Training patients fit, validation patients choose, test patients are scored once, after everything is fitted.
Writes DIR/results.jsonl (a row per figure), DIR/predictions.npz (for paired comparisons), DIR/pictures.npz and
DIR/patch_map.npz (for the report), DIR/heads/NAME (the fitted heads, for eval.predict) and a line in
DIR/test_opened.jsonl for every time that the test patients were looked at.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eval import fold_fits
from eval.config import TaskConfig, check
from eval.contract import Choices, Drawing, Outcome
from eval.data import features, files, groups, leaks, sources, splits
from eval.data.cohorts import Base, Cohort
from eval.data.examples import Examples
from eval.data.splits import Fold
from eval.encoders import colours, encoder, stored_vectors, windows
from eval.fold_fits import FittedFold
from eval.intake import preparation
from eval.kept import calibration, head
from eval.probes import registry, site
from eval.reporting import overlays, patch_map, pictures, published, results
from eval.statistics import bootstrap, confounding
from eval.statistics.predictions import Tabled
from meddap import console
from meddap.settings import load

_CALIBRATED = (*calibration.LABELS, calibration.CLASSES, "segmentation")  # kinds of task that give probabilities


def run(checkpoint: str, task: TaskConfig, output: Path, cache: Path | None = None) -> list[dict[str, Any]]:
    """Run the task's probes; return the rows of results.jsonl. Raises MeddapError.

    cache  folder for features that several probed encoders share; None: one inside of `output`
    """
    check(task)
    published.find(task.published)
    probes = registry.find(task.probes, task.kind, task.level, task.refit)
    asked = task
    task, about_window = windows.chosen(checkpoint, task)
    frozen, cache = encoder.load(checkpoint, task), cache or output / "cache"
    probes, without = registry.answerable(probes, frozen)
    fold_fits.check_readable(probes, task)
    examples = sources.load(task, cache)
    in_hu = fold_fits.images_in_hu(examples, task)
    if not examples.names:
        console.say("no label maps in these shards: nothing to probe, only the maps of the features are drawn")
        probes, examples = {}, examples.take(examples.splits == "test")
        none = np.zeros(0, np.int64)
        folds = [Fold("", {"train": none, "val": none, "test": np.arange(len(examples))})]
    else:
        folds = splits.folds(examples, task)
    console.say(f"{frozen.source}: {len(examples)} examples, {len(examples.names)} labels, {task.size} pixels")
    for line in (about_window, colours.said(frozen, task)):
        if line:
            console.say(line)
    found_leaks = leaks.check(checkpoint, task, examples, folds, cache)
    confounded = _confounded(examples, task, cache)
    members = groups.of_patients(task, examples, np.concatenate([fold.rows["test"] for fold in folds]))
    for line in [*without, *found_leaks.lines(), *confounded]:
        console.say(line)
    patches = not probes or "patches" in {probe.reads(task) for probe in probes.values()}
    fitted, seen, digest = fold_fits.fit_folds(probes, folds, frozen, examples, task, cache, in_hu)
    if in_hu and seen.by != "validation":
        seen = replace(seen, by=fold_fits.decided(asked, task))
    # from here on the test patients are seen, once, and nothing is chosen any more
    opened = results.record_opening(output, frozen.source, digest, task, examples.version)
    outcomes: dict[str, list[list[Outcome]]] = {name: [] for name in probes}
    for each in fitted:
        test = Cohort("test", each.base, each.fold.rows["test"])
        for name, one in each.probes.items():
            outcomes[name].append(list(one.predict(test)))
    pooled = {name: results.pooled(each) for name, each in outcomes.items()}
    base, rows_of = fitted[-1].base, folds[-1].rows
    site_told = None
    if base.features is not None:
        site_told = site.told(*(Cohort(part, base, rows_of[part]) for part in ("train", "test")))
    choices = {name: _choices(fitted, name) for name in probes}
    shared: dict[str, Any] = {"leaks": found_leaks.row(), "confounded": confounded, "site_told": site_told}
    shared |= {"encoder": frozen.source, "digest": digest, "weights": encoder.weights_digest(frozen)}
    shared |= {"window": seen.row(), "dataset": examples.version, "test_opened": opened}
    shared |= {"checkpoint": _absolute(checkpoint), "tested": task.split.by}
    if task.source != stored_vectors.NAME:
        console.say(f"{frozen.source}: sees {windows.told(shared)}")
    shared |= {"preprocessing": encoder.preprocessing(frozen, task.size)}
    rows = [row | shared for row in results.rows(pooled, choices, task)]
    output.mkdir(parents=True, exist_ok=True)
    results.save_predictions(output / "predictions.npz", pooled, task)
    groups.write(output, members)
    last = Cohort("test", base, rows_of["test"])
    drawings = {name: one for name, one in fitted[-1].probes.items() if isinstance(one, Drawing)}
    if patches and task.pictures:
        pictures.save(output / "pictures.npz", last, drawings, task)
    of_images = task.source != stored_vectors.NAME
    seen_patches = of_images and base.features is not None
    if seen_patches and (line := patch_map.write(output, fitted[-1].encoder, last.examples, task)):
        console.say(line)
    measured = {name: each[0].prediction for name, each in pooled.items()}
    drawn = {name: each for name, each in measured.items() if isinstance(each, Tabled) and "dice" in each.values}
    if drawn:
        overlays.save(output / "overlays.npz", last, drawings, drawn)
    # new patients' images cannot become vectors of an encoder that is not here
    kept = _keep(fitted, outcomes, rows, output) if task.keep_heads and of_images else []
    head.remove_others(output, kept)
    files.write_rows(output / "results.jsonl", rows)
    return rows


def _confounded(examples: Examples, task: TaskConfig, cache: Path) -> list[str]:
    """Return what patients' sites tell of their labels, in sentences."""
    if not examples.names or task.kind in ("regression", "survival", "retrieval"):
        return []
    everyone = Cohort("all", Base(examples, None, task, cache), np.arange(len(examples)))
    return confounding.by_site(everyone.sites, everyone.states, everyone.subjects, everyone.names, task.seed)


def _absolute(checkpoint: str) -> str:
    """Return what `--checkpoint` named in a form that holds from any folder."""
    return os.path.abspath(checkpoint) if Path(checkpoint.partition(":")[0]).exists() else checkpoint


def _keep(
    fitted: list[FittedFold],
    outcomes: dict[str, list[list[Outcome]]],
    rows: list[dict[str, Any]],
    output: Path,
) -> list[str]:
    """Keep every fitted head that can be kept, with its card; say which are, and return their names."""
    reasons = {}
    prepared = vars(preparation.of_task(fitted[0].base.task))
    for number, one in enumerate(fitted, 1):
        fold, base, task, examples = one.fold, one.base, one.base.task, one.base.examples
        source: dict[str, Any] = {"source": one.encoder.source, "digest": one.encoder.digest}
        source["window"] = [float(value) for value in one.encoder.window]
        source["windows"] = [list(pair) for pair in getattr(one.encoder, "windows", ())]
        if task.windows_as == "choice" and task.windows:  # new patients are seen in the window that was chosen
            task = replace(task, window=source["window"], windows=[])
        learned = np.concatenate([fold.rows["train"], fold.rows["val"]])
        for name, each in one.probes.items():
            figures = [  # a head is handed on, a path is not
                {key: value for key, value in row.items() if key != "checkpoint"}
                for row in rows
                if row["probe"] == name and row["label"] in results.HEADLINE
            ]
            maps: tuple[dict[str, Any], ...] = ()
            if task.kind in _CALIBRATED and not each.refitted and not isinstance(each, Drawing):
                maps = calibration.fit(each.predict(Cohort("val", base, fold.rows["val"])))
                figures += calibration.figures(maps, outcomes[name][number - 1], task)
            sees = registry.PROBES[name].reads(task) == "images" or name in registry.SEE_IMAGES
            mine = head.Head(
                probe=name,
                fold=f"fold{number}" if len(fitted) > 1 else "",
                task=task,
                names=examples.names,
                values=examples.values,
                ignored=examples.ignored,
                sequences=features.sequences_of(examples, base.cache) if sees else (),
                encoder=source,
                prepared=prepared,
                patients={part: len(np.unique(examples.subjects[those])) for part, those in fold.rows.items()},
                training=head.hashes(examples.subjects[learned]),
                choices=each.choices,
                refitted=each.refitted,
                figures=tuple(figures),
                calibration=maps,
            )
            reasons[mine.name] = head.keep(output, mine, each, examples.digests[learned])
    for line in head.lines(reasons):
        console.say(line)
    return [name for name, reason in reasons.items() if not reason]


def _choices(fitted: list[FittedFold], name: str) -> Choices:
    """Return what validation patients chose, by fold where there are several, and whether the last fit saw them."""
    each = {one.fold.name: one.probes[name] for one in fitted}
    chosen = {fold: one.choices for fold, one in each.items()}
    return {
        "chosen_on_val": chosen[""] if list(chosen) == [""] else chosen,
        "refitted": all(one.refitted for one in each.values()),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the headline figures as a Markdown table."""
    lines = ["| probe | metric | test | 95 % interval | patients |", "|---|---|---|---|---|"]
    for row in rows:
        if row["label"] in results.HEADLINE:
            figure = " | ".join(bootstrap.shown(row))
            variant = results.words(row["variant"])
            lines.append(f"| {row['probe']}{variant} | {row['metric']} | {figure} | {row['patients']} |")
    return "\n".join(lines)


@console.command
def main(arguments: list[str] | None = None) -> int:
    parser = console.parser(
        "Measure what the features of a frozen encoder know about a task: training patients fit the probes, validation "
        "patients choose their settings, test patients are scored once. Prints a table.",
        "A second start with the same --output reads the features that are there. eval/configs/ has tasks to start "
        "from; eval/config.py lists every key.",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="WHAT",
        help="a run, RUN:chosen, or a stage or step of one; published weights; FILE.py:FUNCTION, an encoder of yours; "
        "pixels, the baseline without a network; vectors, with source=vectors; random, untrained "
        "weights of the architecture of like=RUN",
    )
    parser.add_argument("--task", required=True, metavar="FILE", help="the task as YAML")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for results, predictions and cached features"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change the task, e.g. data=SHARDS size=160")
    options = parser.parse_intermixed_args(arguments)
    task = load(TaskConfig, options.task, options.overrides)
    with files.output_errors(options.output):
        rows = run(options.checkpoint, task, options.output)
    beside = published.lines(options.output) if rows else []
    console.show("\n".join([table(rows), *(["", *beside] if beside else [])]))
    return 0


if __name__ == "__main__":
    console.launch(main)
