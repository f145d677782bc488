"""Scaling: one task over encoders and input sizes, as a table and a picture.

    python -m eval.sweep --checkpoints SMALL BASE --sizes 96 160 224 --task FILE --output DIR data=SHARDS

Every point is a run of eval.probe in DIR/<encoder>-<size>, and is skipped where it is there already; results of other
weights under the same name are refused.
Writes DIR/sweep.jsonl (the headline figures of every point) and DIR/sweep.png.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from data_prep.figures import COLOURS, STYLE, png
from eval import probe
from eval.config import TaskConfig
from eval.data import files
from eval.encoders import encoder
from eval.reporting import results
from eval.statistics import bootstrap
from meddap import console
from meddap.disk import write_atomic
from meddap.settings import SettingsError, load
from pretrain.weights import chosen


@dataclass(frozen=True)
class Point:
    """One encoder at one input size: what it is called, its parameters (0 for no network), where its probes lie.

    digest  of weights and architecture
    """

    checkpoint: str
    name: str
    digest: str
    parameters: int
    size: int
    folder: Path


def plan(checkpoints: list[str], sizes: list[int], task: TaskConfig, output: Path) -> list[Point]:
    """Return all points. Raises SettingsError, before any is computed, for a size that does not fit an encoder.

    Raises SettingsError as well where the output holds results of other weights: a run has trained on, or chosen anew.
    """
    points: list[Point] = []
    known: dict[str, str] = {}
    for checkpoint in checkpoints:
        found = encoder.load(checkpoint, task)
        name = _name(checkpoint)
        if name in known:
            raise SettingsError(f"{checkpoint}: is called {name}, as {known[name]} is; give one of them another folder")
        known[name] = checkpoint
        for size in sizes:
            if size < 1:
                raise SettingsError(f"--sizes {size}: expected 1 or more")
            if size % found.patch_size:
                raise SettingsError(f"--sizes {size}: not a multiple of {checkpoint}'s patch size {found.patch_size}")
            point = Point(
                checkpoint, name, encoder.weights_digest(found), parameters(found), size, output / f"{name}-{size}"
            )
            there = results.read_rows(point.folder) if _is_there(point) else []
            if any(row.get("weights", row.get("digest", point.digest)) != point.digest for row in there):
                raise SettingsError(
                    f"{point.folder}: holds results of other weights than {checkpoint} has now; remove it, or give "
                    "another --output"
                )
            points.append(point)
    return points


def _is_there(point: Point) -> bool:
    return (point.folder / "results.jsonl").is_file()


def parameters(found: encoder.FrozenEncoder) -> int:
    """Return how many parameters an encoder has; 0 where it is not a network."""
    model = getattr(found, "model", None) or getattr(found, "network", None)
    return sum(each.numel() for each in model.parameters()) if isinstance(model, torch.nn.Module) else 0


def run(points: list[Point], task_file: str, overrides: list[str]) -> list[dict]:
    """Return the headline figures of every point, computed where they are missing."""
    rows = []
    for point in points:
        if not _is_there(point):
            task = load(TaskConfig, task_file, [*overrides, f"size={point.size}"])
            probe.run(point.checkpoint, task, point.folder)
        for row in results.read_rows(point.folder):
            if row["label"] in results.HEADLINE:
                rows.append({"name": point.name, "parameters": point.parameters, "size": point.size, **row})
    return rows


def main_figures(rows: list[dict]) -> list[dict]:
    """Return the rows of the first metric of every probe and variant."""
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row["probe"] + results.words(row["variant"]), row["metric"])
    return [row for row in rows if first[row["probe"] + results.words(row["variant"])] == row["metric"]]


def picture(rows: list[dict]) -> bytes:
    """Draw every probe's figure over the input size, a line per encoder, and over parameters, a line per size.

    Parameters are left out where all encoders have equally many.
    """
    shown = [row for row in main_figures(rows) if row["value"] is not None]
    probes = list(dict.fromkeys((row["probe"] + results.words(row["variant"]), row["metric"]) for row in shown))
    views = [("size", "name", "input, pixels"), ("parameters", "size", "parameters")]
    if len({row["parameters"] for row in shown if row["parameters"]}) < 2:
        del views[1]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(probes),
            len(views),
            figsize=(3.8 * len(views), 2.7 * len(probes)),
            squeeze=False,
            sharey="row",
            layout="constrained",
        )
        for line, (name, metric) in zip(axes, probes):
            mine = [row for row in shown if row["probe"] + results.words(row["variant"]) == name]
            for axis, (place, label, title) in zip(line, views):
                placed = [row for row in mine if row[place]]  # without a network there are no parameters
                for number, one in enumerate(dict.fromkeys(row[label] for row in placed)):
                    points = sorted((row for row in placed if row[label] == one), key=lambda row: row[place])
                    values = [row["value"] for row in points]
                    spread = [[abs(row["value"] - row[end]) for row in points] for end in ("low", "high")]
                    axis.errorbar(
                        [row[place] for row in points], values, spread,
                        marker="o", ms=4, lw=1.4, capsize=2, color=COLOURS[number % 10],
                        label=one if label == "name" else f"{one} pixels",
                    )  # fmt: skip
                axis.set(xlabel=title, title=f"{name} ({metric})")
                axis.grid(alpha=0.2)
                if placed:
                    axis.legend(frameon=False, fontsize=8)
                if place == "parameters":
                    axis.set_xscale("log")
                else:
                    axis.set_xticks(sorted({row["size"] for row in mine}))
    return png(figure)


def table(rows: list[dict]) -> str:
    """Return the main figure of each probe as a Markdown table."""
    head = "| encoder | parameters | pixels | probe | metric | test | 95 % interval |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for row in main_figures(rows):
        shown = " | ".join(bootstrap.shown(row))
        who = f"| {row['name']} | {row['parameters'] / 1e6:.1f} M | {row['size']} "
        lines.append(f"{who}| {row['probe']}{results.words(row['variant'])} | {row['metric']} | {shown} |")
    return "\n".join(lines)


def _name(checkpoint: str) -> str:
    """Return a folder's name for an encoder: a run's name, a step's with run and stage, a file's without its ending."""
    if (run := chosen.run_of(checkpoint)) is not None:  # not the run's newest, whose name is that of the run
        return f"{run.name}-chosen"
    path = Path(checkpoint.rpartition(":")[0] or checkpoint)
    parts = path.parts[-3:] if (path / "state.json").is_file() else (path.stem if path.suffix else path.name,)
    return "-".join(parts)


@console.command
def main(arguments: list[str] | None = None) -> int:
    parser = console.parser(
        "Probe several encoders at several image sizes on one task: does a larger encoder, or a finer image, help? "
        "Prints a table and draws a picture.",
        "A second start with the same --output computes only the points that are missing.",
    )
    parser.add_argument(
        "--checkpoints", required=True, nargs="+", metavar="WHAT", help="each as eval.probe --checkpoint takes it"
    )
    parser.add_argument(
        "--sizes", required=True, nargs="+", type=int, metavar="PIXELS", help="multiples of the encoders' patch sizes"
    )
    parser.add_argument("--task", required=True, metavar="FILE", help="the task as YAML, see eval/configs/")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for sweep.jsonl, sweep.png and every point"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change the task, e.g. data=SHARDS draws=500")
    options = parser.parse_intermixed_args(arguments)
    task = load(TaskConfig, options.task, options.overrides)
    with files.output_errors(options.output):
        points = plan(options.checkpoints, options.sizes, task, options.output)
        rows = run(points, options.task, options.overrides)
        files.write_rows(options.output / "sweep.jsonl", rows)
        write_atomic(options.output / "sweep.png", picture(rows))
    console.show(table(rows))
    console.show(str(options.output / "sweep.png"))
    return 0


if __name__ == "__main__":
    console.launch(main)
