"""One self-contained HTML page about a finished data set.

    python -m data_prep.overview DIR [--output FILE]

It shows patients and slices, scanners, spacing, intensities, labels, example slices with their label maps, what was
left out and why, and how the data set was made.
"""

from __future__ import annotations

import html
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import figures, schema
from data_prep.schema import Slice, Split
from data_prep.sharding import description
from meddap.console import command, launch, parser, show
from meddap.disk import disk_errors, write_atomic
from meddap.page import dim, figure, page, table

_EXAMPLES = 16  # tiles


def overview(root: Path) -> str:
    """Return the page. Raises SchemaError if there is no finished data set or one of its files is damaged."""
    dataset = description.read_dataset(root)
    rows = description.read_manifest(root, dataset)
    accepted = [row for row in rows if row["status"] == "accepted"]
    sections = {
        "Patients and slices": _splits(dataset),
        "What is in it": _contents(accepted),
        "Draws of a training": _draws(root),
        "Spacing": _spacing(accepted),
        "Intensities": _intensities(description.read_histograms(root)),
        "Labels": _labels(dataset, accepted),
        "Examples": _examples(root, dataset),
        "Left out": _left_out(rows),
        "How it was read": _reading(accepted, dataset),
    }
    filled = ((title, list(lines)) for title, lines in sections.items())
    body = [line for title, lines in filled if lines for line in (f"<h2>{html.escape(title)}</h2>", *lines)]
    return page(f"MedDAP data set: {root.resolve().name}", f"Digest {dataset['digest'][:16]}", body)


def _splits(dataset: dict[str, Any]) -> Iterator[str]:
    rows = [
        [name, part["subjects"], part["series"], part["samples"], len(part["shards"]), _size(part["shards"])]
        for name, part in ((name, dataset["splits"][name]) for name in schema.SPLITS)
    ]
    head = ["split", "patients", "series or studies", "slices", "shards", "size"]
    yield table(head, rows, "A patient is in one split alone, by salted hash.")
    for line in dataset.get("warnings", []):
        yield f"<p>{html.escape(f'Warning: {line}')}</p>"


def _size(shards: list[dict]) -> str:
    size = sum(row["bytes"] for row in shards)
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _contents(accepted: list[dict]) -> Iterator[str]:
    yield _counts("sequence", (row["sequence"] for row in accepted))
    studies: dict[str, set[str]] = defaultdict(set)
    for row in accepted:
        studies[row["stack"]].add(row["sequence"])
    if any(len(names) > 1 for names in studies.values()):
        yield _counts("sequences of a study", (" + ".join(sorted(names)) for names in studies.values()), "studies")
    yield _counts("how the sequence was known", (_grounds(row) for row in accepted if "grounds" in row))
    yield _counts("body part", (row["meta"].get("body_part", "not stated") for row in accepted))
    yield _counts("scanner", map(_scanner, accepted))
    if any("field_tesla" in row["meta"] for row in accepted):
        yield _counts("field strength", (_tesla(row["meta"].get("field_tesla")) for row in accepted))
    if any("kernel" in row["meta"] for row in accepted):
        yield _counts("kernel", (row["meta"].get("kernel", "not stated") for row in accepted))


def _grounds(row: dict) -> str:
    return "repetition, echo and inversion time" if row["grounds"].startswith("TR ") else row["grounds"]


def _scanner(row: dict) -> str:
    meta = row["meta"]
    return " ".join(filter(None, (meta.get("manufacturer"), meta.get("model")))) or "not stated"


def _tesla(field: float | None) -> str:
    return "not stated" if field is None else f"{field:g} T"


def _counts(what: str, values: Iterable[str], unit: str = "series", most: int = 12) -> str:
    """Return a figure with a bar for each value, the rarest summed up; "" if there are no values."""
    counts = Counter(values)
    shown = dict(counts.most_common(most))
    if rest := sum(counts.values()) - sum(shown.values()):
        shown[f"{len(counts) - most} others"] = rest
    if list(shown) == ["not stated"]:
        return dim(f"No header states the {what}.")
    if not shown:
        return ""
    alt = ", ".join(f"{name}: {count}" for name, count in shown.items())
    title = html.escape(what[0].upper() + what[1:])
    return f"<h3>{title}</h3>{figure(figures.bars(shown, unit), alt=alt)}"


def _draws(root: Path) -> Iterator[str]:
    """Say for all weights beside the shards how often a training draws what; nothing where there are none."""
    for name in schema.weights_beside(root):
        yield f"<h3>{html.escape(f'sampling={name}')}</h3>"
        try:
            split_name, shares = schema.read_shares(root, name)
            split = Split(root, split_name)
            weights = schema.read_weights(split, name)
        except schema.SchemaError as error:
            yield f"<p>{html.escape(f'Warning: {error}')}</p>"
            continue
        scaled = weights / weights.mean(dtype=np.float64)
        never = f"; {int((weights == 0).sum()):,} never" if (weights == 0).any() else ""
        yield dim(
            f"{len(weights):,} slices of {split.name}, drawn {scaled.min():.3g} to {scaled.max():.3g} times as often "
            f"as on average{never}."
        )
        for attribute, words in shares.items():
            what = attribute.replace("_", " ")
            alt = ", ".join(f"{word}: {100 * one:.1f} to {100 * other:.1f} %" for word, (one, other) in words.items())
            yield figure(figures.shares(words), f"Share of the slices and of the draws by {what}.", alt=alt)


def _spacing(accepted: list[dict]) -> Iterator[str]:
    if not accepted:
        yield dim("No series was used.")
        return
    grids = Counter(tuple(row["spacing_mm"]) for row in accepted)
    lengths = {"between slices": [row["spacing_mm"][0] for row in accepted]}
    lengths["in plane"] = [max(row["spacing_mm"][1:]) for row in accepted]
    panels = {}
    for name, values in lengths.items():
        counts, edges = np.histogram(values, bins=30, range=(0, max(values) * 1.05))
        panels[name] = (edges[:-1], counts)
    yield figure(figures.histograms(panels, "mm", logarithmic=False), "Series by their spacing.")
    rows = [[" × ".join(f"{length:g}" for length in grid), count] for grid, count in grids.most_common(8)]
    yield table(["slice × row × column in mm", "series"], rows, f"The most frequent of {len(grids)} grids.")


def _intensities(histograms: dict[str, dict[str, int]]) -> Iterator[str]:
    filled = {name: counts for name, counts in histograms.items() if counts}
    if not filled:
        yield dim("No training patients: no histogram.")
        return
    panels, rows = {}, []
    for name, counts in filled.items():
        at = np.array(sorted(map(int, counts)))
        many = np.array([counts[str(value)] for value in at])
        binned, edges = np.histogram(at, bins=200, weights=many)
        panels[name] = (edges[:-1], binned)
        statistics = description.statistics(counts)
        rows.append([name, *(f"{statistics[key]:.0f}" for key in ("mean", "std", "p0.5", "p50", "p99.5"))])
    unit = "HU" if list(filled) == ["ct"] else "stored value"
    yield figure(figures.histograms(panels, unit), "Foreground of the training patients, logarithmic.")
    yield table(["", "mean", "std", "0.5 %", "median", "99.5 %"], rows)


def _labels(dataset: dict, accepted: list[dict]) -> Iterator[str]:
    studies = {row["stack"]: row["annotated"] for row in accepted}
    counts = Counter(value for values in studies.values() for value in values)
    without = sum(not values for values in studies.values())
    if counts:
        rows = [[value, dataset["labels"].get(str(value), ""), counts[value]] for value in sorted(counts)]
        yield table(["value", "name", "series or studies"], rows)
    yield dim(f"{without} of {len(studies)} series or studies have no label map.")
    rows = [
        [column, name, *(classes["patients"][split][place] for split in schema.SPLITS)]
        for column, classes in dataset["classes"].items()
        for place, name in enumerate(classes["names"])
    ]
    if rows:
        yield table(["label", "class", *schema.SPLITS], rows, "Labelled patients of each class.")


def _examples(root: Path, dataset: dict[str, Any]) -> Iterator[str]:
    several = max(len(dataset["sequences"]), 1)
    for name in schema.SPLITS:
        if not dataset["splits"][name]["samples"]:
            continue
        split = Split(root, name)
        ordered = np.lexsort((split.index["order"], split.index["series"]))
        count = min(max(_EXAMPLES // several, 4), len(ordered))
        places = (np.arange(count) + 0.5) * len(ordered) / count
        chosen = [_shown(split[int(ordered[int(place)])], dataset["ignore"]) for place in places]
        yield figure(
            figures.slices(chosen), f"{name}: slices from all over the split, labels in colour, box of the foreground."
        )


def _shown(sample: Slice, ignored: list[int]) -> Slice:
    """Return a slice without the labels that mean that nobody annotated."""
    if sample.labelmap is None or not ignored:
        return sample
    return replace(sample, labelmap=np.where(np.isin(sample.labelmap, ignored), 0, sample.labelmap).astype(np.uint8))


def _left_out(rows: list[dict]) -> Iterator[str]:
    rejected = Counter(row["reason"] for row in rows if row["status"] == "rejected")
    if not rejected:
        yield dim(f"Nothing: all {len(rows)} series were used.")
        return
    yield table(["reason", "series"], [[reason, count] for reason, count in rejected.most_common()])


def _reading(accepted: list[dict], dataset: dict[str, Any]) -> Iterator[str]:
    changed: Counter[str] = Counter()
    voxels: Counter[str] = Counter()
    for row in accepted:
        for name, value in row["notes"].items():
            if value:
                changed[name] += 1
                voxels[name] += value if isinstance(value, int) and not isinstance(value, bool) else 0
    rows = [[name.replace("_", " "), count, voxels[name] or ""] for name, count in sorted(changed.items())]
    if rows:
        yield table(["what was changed or noticed", "series", "in all"], rows, "From the notes in manifest.jsonl.")
    air = sum({row["stack"]: row["air_slices"] for row in accepted}.values())
    yield dim(f"{air:,} slices hold (almost) nothing but air and were left out.")
    settings = json.dumps(dataset["made_with"]["settings"], indent=1)
    yield f"<details><summary>Settings</summary><pre>{html.escape(settings)}</pre></details>"


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options_parser = parser("Write one HTML page about a data set: counts, histograms, examples, what was left out.")
    options_parser.add_argument("root", type=Path, metavar="DIR", help="the data set: the folder of dataset.json")
    options_parser.add_argument("--output", type=Path, metavar="FILE", help="the page (default: DIR/overview.html)")
    options = options_parser.parse_args(arguments)
    output = options.output or options.root / "overview.html"
    text = overview(options.root)
    with disk_errors(output):
        write_atomic(output, text.encode())
    show(str(output))
    return 0


if __name__ == "__main__":
    launch(main)
