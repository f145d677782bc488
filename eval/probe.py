"""Probes of one frozen encoder: what its features know, on which patients, and how sure that is.

    python -m eval.probe --checkpoint RUN --task eval/configs/quickstart.yaml --output DIR data=SHARDS

Training patients fit, validation patients choose, test patients are scored once.
Writes DIR/results.jsonl (a row per figure), DIR/predictions.npz (for paired comparisons) and
DIR/pictures.npz (for the report).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_prep.disk import write_atomic
from data_prep.schema import SchemaError, Split
from data_prep.settings import SettingsError, load
from eval import bootstrap, encoder, features, knn, linear, metrics, pictures, segmentation
from eval.bootstrap import Overlap, Presence
from eval.config import TaskConfig
from eval.features import Features
from pretrain.checkpoint import CheckpointError

PROBES = ("knn", "linear", "segmentation")
METRIC = {"knn": "auroc", "linear": "auroc", "segmentation": "dice"}


def run(checkpoint: str, task: TaskConfig, output: Path) -> list[dict]:
    """Run the task's probes; returns the rows of results.jsonl."""
    if strange := set(task.probes) - set(PROBES):
        raise SettingsError(f"probes: {', '.join(sorted(strange))}: no such probe; there are {', '.join(PROBES)}")
    frozen = encoder.load(checkpoint, task)
    splits = {name: Split(task.data, name) for name in ("train", "val", "test")}
    _no_patient_twice(splits)
    organs = features.organs_of(task, splits["train"].dataset)
    say(f"{frozen.source}: {len(organs)} organs, blocks {task.blocks}, {task.size} pixels")
    if not organs:
        say("no label maps in these shards: nothing to probe, only the maps of the features are drawn")
        splits = {"test": splits["test"]}
    found = {name: features.extract(frozen, split, task, organs, output / "cache") for name, split in splits.items()}
    predictions: dict[str, Presence | Overlap] = {}
    choices: dict[str, dict] = {}
    fitted = None
    for name in task.probes if organs else []:
        began = time.monotonic()
        if name == "segmentation":
            fitted = segmentation.fit(found["train"], found["val"], organs, task.segmentation, task.seed)
            predictions[name] = segmentation.score(fitted, found["test"], splits["test"], organs, task.segmentation)
            choices[name] = {"lr": fitted.lr, "thresholds": dict(zip(organs, fitted.thresholds.tolist()))}
        else:
            predictions[name], choices[name] = PRESENCE_PROBES[name](found, task)
        say(f"{name}: {time.monotonic() - began:.0f} s")
    shared = {"encoder": frozen.source, "digest": frozen.digest, "dataset": splits["test"].dataset["digest"]}
    rows = [row | shared for row in figures(predictions, choices, list(organs), task)]
    output.mkdir(parents=True, exist_ok=True)
    save_predictions(output / "predictions.npz", predictions, list(organs), {"task": asdict(task), "draws": task.draws})
    pictures.save(output / "pictures.npz", found["test"], splits["test"], organs, fitted, task)
    write_atomic(output / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return rows


def figures(predictions: dict, choices: dict, organs: list[str], task: TaskConfig) -> list[dict]:
    """A row per probe and organ, and one for the macro average, with intervals by resampling patients."""
    rows = []
    for probe, prediction in predictions.items():
        shared = {"task": task.name, "probe": probe, "metric": METRIC[probe], "split": "test"}
        shared |= {"chosen_on_val": choices[probe], "seed": task.seed, "draws": task.draws}
        each = bootstrap.figures(prediction, task.draws, task.seed)
        rows += [{**shared, "organ": name, **figure.row()} for name, figure in zip([*organs, "macro"], each)]
    return rows


def probe_knn(found: dict[str, Features], task: TaskConfig) -> tuple[Presence, dict]:
    """The k that serves the validation patients best, on the test patients."""
    train, val, test = (found[name] for name in ("train", "val", "test"))

    def scores(part: Features, k: int) -> np.ndarray:
        return knn.scores(train.pooled, train.present, part.pooled, k, task.knn.temperature)

    best = max(task.knn.k, key=lambda k: macro_auroc(scores(val, k), val.present))
    return Presence(scores(test, best), test.present, test.subjects), {"k": best}


def probe_linear(found: dict[str, Features], task: TaskConfig) -> tuple[Presence, dict]:
    """The penalty that serves the validation patients best, on the test patients."""
    train, val, test = (found[name] for name in ("train", "val", "test"))
    standard = linear.Standard.of(train.pooled)
    inputs = {name: standard.apply(part.pooled) for name, part in found.items()}
    fits = {l2: linear.fit(inputs["train"], train.present, l2, task.linear.steps) for l2 in task.linear.l2}

    def scores(name: str, l2: float) -> np.ndarray:
        weights, biases = fits[l2]
        return inputs[name] @ weights + biases

    best = max(task.linear.l2, key=lambda l2: macro_auroc(scores("val", l2), val.present))
    return Presence(scores("test", best), test.present, test.subjects), {"l2": best}


PRESENCE_PROBES = {"knn": probe_knn, "linear": probe_linear}


def macro_auroc(scores: np.ndarray, present: np.ndarray) -> float:
    """Mean AUROC over the organs that have both classes; 0.5 where none has."""
    known = present >= 0
    each = [
        metrics.auroc(scores[known[:, organ], organ], present[known[:, organ], organ] == 1)[0]
        for organ in range(present.shape[1])
    ]
    return float(np.nan_to_num(metrics.macro(np.array(each)), nan=0.5))


def save_predictions(path: Path, predictions: dict[str, Presence | Overlap], organs: list[str], made: dict) -> None:
    """What paired comparisons need: every array of every prediction as `<probe>.<field>`."""
    arrays = {f"{probe}.{key}": value for probe, each in predictions.items() for key, value in vars(each).items()}
    memory = io.BytesIO()
    np.savez_compressed(memory, organs=np.array(organs), made=np.array(json.dumps(made)), **arrays)
    write_atomic(path, memory.getvalue())


def _no_patient_twice(splits: dict[str, Split]) -> None:
    patients = {name: set(split.index["subject"].tolist()) for name, split in splits.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := patients[one] & patients[other]:
            raise SettingsError(f"{splits[one].root}: {len(both)} patients are in {one} and in {other}; shard again")


def table(rows: list[dict]) -> str:
    """The macro figures as a Markdown table."""
    lines = ["| probe | metric | test | 95 % interval | patients |", "|---|---|---|---|---|"]
    for row in rows:
        if row["organ"] == "macro":
            figure = " | ".join(bootstrap.shown(row))
            lines.append(f"| {row['probe']} | {row['metric']} | {figure} | {row['patients']} |")
    return "\n".join(lines)


def say(line: str) -> None:
    """A line on the console."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.probe",
        description="Probe a frozen encoder on sharded images with label maps.",
        epilog="Features are cached below --output; eval/config.py lists the keys.",
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR|random", help="run, stage or step folder; or random with like=DIR"
    )
    parser.add_argument("--task", required=True, metavar="FILE", help="YAML, see eval/configs/")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for results and cached features"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data=SHARDS size=160")
    options = parser.parse_intermixed_args(arguments)
    try:
        rows = run(options.checkpoint, load(TaskConfig, options.task, options.overrides), options.output)
    except (SettingsError, SchemaError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or options.output}: {error.strerror}", file=sys.stderr)
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
