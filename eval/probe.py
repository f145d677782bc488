"""Probes of one frozen encoder: what its features know, on which patients, and how sure that is.

    python -m eval.probe --checkpoint RUN --task eval/configs/quickstart.yaml --output DIR data=SHARDS

Training patients fit, validation patients choose, test patients are scored once, after everything is fitted.
Writes DIR/results.jsonl (a row per figure), DIR/predictions.npz (for paired comparisons), DIR/pictures.npz (for the
report) and a line in DIR/test_opened.jsonl for every time that the test patients were looked at.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from data_prep.schema import SchemaError
from eval.config import TaskConfig, check
from eval.contract import Choices, Context, Drawing, Fitted, Outcome, Probe
from eval.data import features, leaks, sources, splits
from eval.data.cohorts import Base, Cohort
from eval.data.splits import Fold
from eval.encoders import encoder
from eval.probes import registry
from eval.reporting import overlays, pictures, results
from eval.statistics import bootstrap
from meddap.disk import write_atomic
from meddap.settings import SettingsError, load
from pretrain.runtime.checkpoint import CheckpointError
from pretrain.weights.published import WeightsError


def run(checkpoint: str, task: TaskConfig, output: Path) -> list[dict]:
    """Run the task's probes; returns the rows of results.jsonl."""
    check(task)
    probes = registry.find(task.probes, task.kind, task.level, task.refit)
    frozen, cache = encoder.load(checkpoint, task), output / "cache"
    examples = sources.load(task, cache)
    if not examples.names:
        say("no label maps in these shards: nothing to probe, only the maps of the features are drawn")
        probes, examples = {}, examples.take(examples.splits == "test")
        folds = [Fold("", {"train": [], "val": [], "test": np.arange(len(examples))})]
    else:
        folds = splits.folds(examples, task)
    say(f"{frozen.source}: {len(examples)} examples, {len(examples.names)} labels, {task.size} pixels")
    found_leaks = leaks.check(checkpoint, task, examples, folds, cache)
    for line in found_leaks.lines():
        say(line)
    needs = {probe.reads(task) for probe in probes.values()}
    patches = not probes or "patches" in needs
    found = None
    if needs != {"images"}:
        blocks = registry.blocks(probes.values(), task, frozen.depth) if patches else ()
        found = features.extract(frozen, examples, task, cache, blocks)
    base, context = Base(examples, found, task, cache, frozen.window), Context(task, frozen, cache)
    fitted = [(fold, _fit(probes, fold, base, context)) for fold in folds]
    # from here on the test patients are seen, once, and nothing is chosen any more
    opened = results.record_opening(output, frozen, task, examples.version)
    outcomes: dict[str, list[list[Outcome]]] = {name: [] for name in probes}
    for fold, probes_of_fold in fitted:
        test = Cohort("test", base, fold.rows["test"])
        for name, each in probes_of_fold.items():
            outcomes[name].append(list(each.predict(test)))
    pooled = {name: results.pooled(each) for name, each in outcomes.items()}
    choices = {name: _choices(fitted, name) for name in probes}
    shared = {"leaks": found_leaks.row()}
    shared |= {"encoder": frozen.source, "digest": frozen.digest, "dataset": examples.version, "test_opened": opened}
    rows = [row | shared for row in results.rows(pooled, choices, task)]
    output.mkdir(parents=True, exist_ok=True)
    results.save_predictions(output / "predictions.npz", pooled, task)
    if patches:
        drawings = {name: each for name, each in fitted[-1][1].items() if isinstance(each, Drawing)}
        pictures.save(output / "pictures.npz", Cohort("test", base, folds[-1].rows["test"]), drawings, task)
    drawn = {name: each[0].prediction for name, each in pooled.items() if "dice" in each[0].prediction.metrics()}
    if drawn:
        fold, probes_of_fold = fitted[-1]
        overlays.save(output / "overlays.npz", Cohort("test", base, fold.rows["test"]), probes_of_fold, drawn)
    write_atomic(output / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return rows


def _fit(probes: dict[str, Probe], fold: Fold, base: Base, context: Context) -> dict[str, Fitted]:
    """Fit every probe on the training and validation patients of one fold."""
    train, val = (Cohort(name, base, fold.rows[name]) for name in ("train", "val"))
    fitted = {}
    for name, probe in probes.items():
        began = time.monotonic()
        fitted[name] = probe.fit(train, val, context)
        say(f"{fold.name} {name}: {time.monotonic() - began:.0f} s".strip())
    return fitted


def _choices(fitted: list[tuple[Fold, dict[str, Fitted]]], name: str) -> Choices:
    """Return what validation patients chose, by fold where there are several, and whether the last fit saw them."""
    each = {fold.name: probes_of_fold[name] for fold, probes_of_fold in fitted}
    chosen = {fold: one.choices for fold, one in each.items()}
    return {
        "chosen_on_val": chosen[""] if list(chosen) == [""] else chosen,
        "refitted": all(one.refitted for one in each.values()),
    }


def table(rows: list[dict]) -> str:
    """The headline figures as a Markdown table."""
    lines = ["| probe | metric | test | 95 % interval | patients |", "|---|---|---|---|---|"]
    for row in rows:
        if row["label"] in results.HEADLINE:
            figure = " | ".join(bootstrap.shown(row))
            variant = results.words(row["variant"])
            lines.append(f"| {row['probe']}{variant} | {row['metric']} | {figure} | {row['patients']} |")
    return "\n".join(lines)


def say(line: str) -> None:
    """A line on the console."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.probe",
        description="Probe a frozen encoder on a task: sharded images with label maps, a table of labels, folders …",
        epilog="Features are cached below --output; eval/config.py lists the keys, eval/configs/ holds tasks.",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="WHAT",
        help="run, stage or step folder; published weights; FILE.py:FUNCTION; random (with like=RUN); pixels",
    )
    parser.add_argument("--task", required=True, metavar="FILE", help="YAML, see eval/configs/")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for results and cached features"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data=SHARDS size=160")
    options = parser.parse_intermixed_args(arguments)
    try:
        rows = run(options.checkpoint, load(TaskConfig, options.task, options.overrides), options.output)
    except (SettingsError, SchemaError, CheckpointError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or options.output}: {error.strerror}", file=sys.stderr)
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
