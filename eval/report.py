"""One self-contained HTML page on runs and their probes, and the same figures as CSV and LaTeX.

python -m eval.report --runs runs/quickstart --output runs/quickstart/report.html
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import figures
from data_prep.schema import SPLITS, Split, license_of
from eval import sweep
from eval.data import files
from eval.reporting import choices, plots, report_probes, sequence_maps, tables, verdict_page
from eval.reporting.page_files import PageFiles
from meddap import console, disk
from meddap.disk import write_atomic
from meddap.errors import MeddapError
from meddap.page import dim, figure, page, table
from meddap.records import read_json_lines
from meddap.settings import SettingsError
from pretrain.config import load, recorded, sources_of
from pretrain.runtime import checkpoint, metrics
from pretrain.weights import card


def report(runs: Sequence[Path], attached: PageFiles | None = None) -> str:
    """Return the page on runs and folders of probes. Raises SettingsError for a folder that is neither.

    attached  takes interactive maps and figures for print, which the page links; None: it links nothing
    """
    body, loose = [], []
    for run in runs:
        if (run / "results.jsonl").is_file():
            loose.append(run)
            continue
        if not (run / "config.yaml").is_file():
            raise SettingsError(f"{run}: not a run (no config.yaml); name a folder that pretrain.train wrote")
        if len(runs) > 1:
            body.append(f"<h1>{html.escape(run.name)}</h1>")
        judged, probes = partial(_verdict, attached=attached), partial(_probes, attached=attached)
        body += ["<h2>Verdict</h2>", *_or_say_why(judged, run), *_or_say_why(choices.section, run)]
        for title, section in (("What was run", _run), ("Data", _data), ("Training", _training), ("Probes", probes)):
            body += [f"<h2>{title}</h2>", *_or_say_why(section, run)]
            body += _or_say_why(_sequences, run) if title == "Training" else []
    if loose:
        body += ["<h2>Verdict</h2>", *verdict_page.section(loose, attached=attached)]
        body += ["<h2>Probes</h2>", *report_probes.section(loose, attached)]
    title = "MedDAP: " + ", ".join(run.name for run in runs)
    return page(title, "Medical domain-adaptive pretraining: what went in, what came out", body)


def write(runs: Sequence[Path], output: Path) -> None:
    """Write the page, and beside it every figure as CSV, the headlines as LaTeX, and a folder of the files it links."""
    attached = PageFiles(output)
    page = report(runs, attached)
    attached.write()
    write_atomic(output, page.encode())
    folders = [folder for run in runs for folder in _probed(run)]
    rows = tables.read(folders)
    if rows:
        rows = tables.joined(rows, report_probes.differences(folders))
        write_atomic(output.with_suffix(".csv"), tables.as_csv(rows).encode())
        write_atomic(output.with_suffix(".tex"), tables.as_latex(rows).encode())


def _probed(run: Path) -> list[Path]:
    """Return the folders of probes that a page shows: of RUN/probe, and of a choice where these compare nothing."""
    probed = report_probes.folders_of(run)
    return probed if verdict_page.verdicts(probed) else [*choices.folders_of(run), *probed]


def _verdict(run: Path, attached: PageFiles | None) -> Iterator[str]:
    yield from verdict_page.section(_probed(run), run, attached)


def _probes(run: Path, attached: PageFiles | None) -> Iterator[str]:
    yield from report_probes.section(_probed(run), attached)
    for path in sorted(run.glob("*/sweep.jsonl")):
        yield f"<h3>Sweep {html.escape(path.parent.name)}</h3>"
        rows = read_json_lines(path, dict, "sweep again")
        yield figure(sweep.picture(rows), "Over the size of the input and of the encoder, with 95 % intervals.")


def _or_say_why(section: Callable[[Path], Iterator[str]], run: Path) -> Iterator[str]:
    """Yield a section, or a sentence on why it is missing: a report of half a run is still a report."""
    try:
        yield from section(run)
    except (MeddapError, OSError) as error:
        yield dim(f"Missing: {error}")


def _run(run: Path) -> Iterator[str]:
    config = load(run / "config.yaml")
    model, rows = config.model, []
    for name in config.stages:
        stage = recorded(config, name)
        done = len(_steps(run, name))
        rows.append(
            [
                name,
                f"{done} of {stage.steps}",
                stage.batch_size,
                f"{stage.optim.lr.highest:g}",
                stage.crops.described,
            ]
        )
    heads = [head for head in (config.dino_head, config.ibot_head) if head is not None]
    prototypes = " and ".join(str(head.prototypes) for head in heads)
    yield (
        f"<p>A transformer, {model.embed_dim} wide and {model.depth} deep, patches of {model.patch_size} pixels, "
        f"{model.position} positions, {model.registers} registers; window {config.intensity.window[0]:g} to "
        f"{config.intensity.window[1]:g} HU; {prototypes} prototypes; "
        f"seed {config.seed}.</p>"
    )
    yield table(["stage", "steps", "batch", "highest lr", "crops in pixels"], rows)
    text = html.escape((run / "config.yaml").read_text())
    yield f"<details><summary>Whole configuration</summary><pre>{text}</pre></details>"


def _data(run: Path) -> Iterator[str]:
    config = load(run / "config.yaml")
    saved = [found for name in config.stages if (found := checkpoint.newest(run / name))]
    heads, rows = card.sources_table(saved[-1]) if saved else ([], [])
    if rows:
        low, high = config.intensity.window
        yield table(heads, rows, f"What is read of each; CT without a window of its own has {low:g} to {high:g} HU.")
    for name, source in sources_of(config.data).items():
        if name:
            yield f"<h3>{html.escape(name)}</h3>"
        yield from _or_say_why(lambda root: _data_set(root, config.data.split), Path(source.root))


def _data_set(root: Path, name: str) -> Iterator[str]:
    split = Split(root, name)
    splits = split.dataset["splits"]
    rows = [
        [name, part["subjects"], part["series"], part["samples"], len(part["shards"])]
        for name, part in ((name, splits[name]) for name in SPLITS)
    ]
    yield table(
        ["split", "patients", "series", "slices", "shards"], rows, "Patients are in one split alone, by salted hash."
    )
    path = root / "manifest.jsonl"
    manifest = read_json_lines(path, {"status": str}, "shard again")
    rejected = Counter(row.get("reason", "unknown") for row in manifest if row["status"] == "rejected")
    if rejected:
        yield table(["left out", "series"], [[reason, count] for reason, count in rejected.most_common()])
    else:
        yield dim(f"All {len(manifest)} input series were used.")
    ordered = np.lexsort((split.index["order"], split.index["series"]))
    shown = ordered[np.linspace(0, len(ordered) - 1, min(16, len(ordered))).astype(int)]
    yield figure(
        figures.slices([split[int(number)] for number in shown]),
        "Training slices with their labels; the box is the foreground that crops are drawn from.",
    )
    license = license_of(split.dataset)
    licensed = f", licensed as {license}" if license else ""
    yield dim(f"Data digest {split.dataset['digest'][:16]}, schema {split.dataset['schema']}{licensed}.")


def _training(run: Path) -> Iterator[str]:
    for stage in load(run / "config.yaml").stages:
        rows = _steps(run, stage)
        if not rows:
            yield dim(f"Stage {stage} has not begun.")
            continue
        speed = np.median([row["images_per_s"] for row in rows])
        waiting = np.mean([row["wait_share"] for row in rows])
        yield f"<h3>{html.escape(stage)}</h3>"
        yield f"<p>{len(rows)} steps, {speed:.1f} images a second, {waiting:.1%} of the time waiting for data.</p>"
        yield figure(
            plots.curves(rows), "Loss terms (thin: every step, thick: smoothed), signs of collapse, learning rate."
        )
        yield from _sources(run / stage, rows)
        if any("sequences/loss" in row for row in rows):
            yield figure(
                plots.lost_sequences(rows),
                "What the student makes of sequences that it does not see, against knowing how often each prototype is "
                "the target in that sequence.",
            )
        path = run / stage / "crops.npz"
        if path.is_file():
            remedy = "train the stage's first step again"
            stored = files.read_arrays(path, remedy)
            with files.reading(path, remedy):
                picture = plots.crops(stored["global_crops"], stored["local_crops"])
            yield figure(picture, "Crops of the first step as the network sees them.")


def _sources(folder: Path, rows: list[dict[str, Any]]) -> Iterator[str]:
    """A table of what a stage has seen of each of several sources, and how they do at its end."""
    found = checkpoint.newest(folder)
    known = found.state.get("sources", {}) if found else {}
    last, tenth = rows[-1], max(1, len(rows) // 10)
    names = [name for name in known if f"source/{name}/samples" in last]
    if not names:
        return
    total = sum(last[f"source/{name}/samples"] for name in names)
    shown = []
    for name in names:
        seen = last[f"source/{name}/samples"]
        ends = [_mean(part, f"source/{name}/loss") for part in (rows[:tenth], rows[-tenth:])]
        spread = [_mean(rows[-tenth:], f"source/{name}/{what}_spread") for what in ("cls", "patch")]
        shares = [f"{known[name]['share']:.2%}", f"{seen / total:.2%}"]
        shown.append([name, seen, *shares, f"{seen / known[name]['samples']:.2f}", *ends, *spread])
    yield table(
        ["source", "samples seen", "share asked", "share seen", "epochs", "loss, first tenth", "loss, last tenth"]
        + ["spread of cls tokens", "spread of patches"],
        shown,
        "Loss: DINO and iBOT of its images, means of the first and the last tenth of the steps; spreads of the last.",
    )
    yield figure(
        plots.sources(rows, names),
        "Loss and spread of the features of each source. A spread near 0 means that all its images, or all patches, "
        "have the same features.",
    )


def _mean(rows: Sequence[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if key in row]
    return f"{np.mean(values):.3f}" if values else "–"


def _steps(run: Path, stage: str) -> list[dict[str, Any]]:
    """Return the metrics of the steps that a stage has taken."""
    path = run / stage / "metrics.jsonl"
    with files.reading(path, "remove the damaged lines"):
        return metrics.read(path)


def _sequences(run: Path) -> Iterator[str]:
    config = load(run / "config.yaml")
    if not config.model.sequences:
        return
    yield "<h2>Sequences</h2>"
    for name, source in sources_of(config.data).items():
        yield f"<h3>{html.escape(name)}</h3>" if name else ""
        yield figure(
            sequence_maps.draw(run, source.root, source.window),
            "First three principal components of the patch features of each sequence as red, green and blue, the same "
            "axes in all; air is black.",
        )


@console.command
def main(arguments: list[str] | None = None) -> int:
    parser = console.parser(
        "Write one HTML page, which needs no other file, on runs and their probes: what was run, on which data, how "
        "the losses fell, what the probes found.",
        "PageFiles the page, every figure as .csv and the headlines as .tex; in a folder <name>_files the interactive "
        "patch map (one file, works offline) and ROC, calibration and forest plots for print, as .svg and .pdf.",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        required=True,
        type=Path,
        metavar="DIR",
        help="folders of runs, with their probes in DIR/probe/*, or folders that eval.probe wrote",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the page, e.g. report.html")
    options = parser.parse_args(arguments)
    with files.output_errors(options.output):
        disk.check_output(options.output)
        write(options.runs, options.output)
    console.show(str(options.output))
    return 0


if __name__ == "__main__":
    console.launch(main)
