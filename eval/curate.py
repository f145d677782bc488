"""Curation of a finished data set: near-duplicates, patients in two splits, and weights that even out what is drawn.

    python -m eval.curate --data SHARDS --output FOLDER [--checkpoint RUN] [--body-parts CSV]

Nothing is deleted or moved: a training takes the weights by `data.sources.NAME.sampling=curated`. FOLDER has
`curation.json` and `curation.html`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.schema import read_dataset
from eval import ranges
from eval.config import CurateConfig
from eval.curation import (
    balance,
    body_parts,
    catalogue,
    duplicates,
    encoded,
    hierarchy,
    pairs,
    search,
    summary,
    weights,
)
from eval.curation.catalogue import Catalogue
from eval.data import files
from meddap import __version__, console
from meddap.disk import disk_errors, sole_writer, write_atomic
from meddap.ranges import check_ranges
from meddap.settings import SettingsError, load

_LEAKS_SAID = 10
_SPEED = ("workers", "batch_size")  # settings that change no weight


def curate(options: argparse.Namespace, config: CurateConfig) -> int:
    """Write weights, `curation.json` and the page; return the exit status. Raises MeddapError."""
    dataset = read_dataset(options.data)
    _check(config, dataset)
    digest = dataset["digest"]
    with sole_writer(options.output):
        slices = catalogue.read(options.data, options.output / "work", config.workers)
        labels = body_parts.read_labels(options.body_parts) if options.body_parts else {}
        console.say(f"{len(slices):,} slices; near-duplicates are searched by {search.engine()}")
        attributes, more = _attributes(slices, labels, options, config)
        clusters, found = _duplicates(slices, options.output / "work", config)
        leaks = found["leaks"]
        _say_leaks(leaks, config)
        banned = _leaking(slices, leaks, config)
        weighed = weights.weigh(slices, clusters, attributes, config, banned)
        settings = {name: value for name, value in asdict(config).items() if name not in _SPEED}
        made_with = {"by": f"meddap curate {__version__}", "settings": settings, "encoder": more.get("encoder")}
        record = {"digest": digest, "made_with": made_with, "duplicates": found, **more}
        record["weights"] = _figures(weighed, banned)
        record["weights"]["left_out"] |= record.pop("not_balanced", {})
        path = weights.write(options.data, slices, weighed, config, made_with)
        write_atomic(options.output / "curation.json", (json.dumps(record, indent=1) + "\n").encode())
        title = f"MedDAP curation: {options.data.resolve().name}"
        page = summary.html_page(title, record, slices, clusters)
        write_atomic(options.output / "curation.html", page.encode())
    _say_weights(record["weights"], found)
    console.show(str(path))
    console.show(str(options.output / "curation.html"))
    return 0


def _check(config: CurateConfig, dataset: dict[str, Any]) -> None:
    """Raise SettingsError for settings that cannot be used on a data set."""
    check_ranges("", config, ranges.CURATE)
    weights.check_strengths(config.balance)
    if config.duplicates.similar > config.duplicates.slice:
        raise SettingsError(f"duplicates.similar={config.duplicates.similar}: above duplicates.slice; take less")
    path = Path(config.name)
    if not path.name or (len(path.parts) > 1 and not path.is_absolute()):
        raise SettingsError(f"name={config.name}: give a word, or an absolute path")
    filled = [name for name, split in dataset["splits"].items() if split["samples"]]
    if config.split not in filled:
        raise SettingsError(f"split={config.split}: no slices there; it has {', '.join(filled) or 'none at all'}")
    hierarchy.check_sizes(config.clusters.sizes, dataset["splits"][config.split]["samples"])


def _duplicates(slices: Catalogue, work: Path, config: CurateConfig) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the cluster of every slice, and what `curation.json` says about duplicates."""
    wanted = config.duplicates
    similar = pairs.find(slices, work, wanted.radius, wanted.neighbours, wanted.similar)
    if similar.full:
        console.say(
            f"{similar.full:,} slices have more than {wanted.neighbours} hashes near theirs, of which the nearest were "
            "compared; duplicates.neighbours=MORE compares more, duplicates.radius=LESS fewer"
        )
    clusters = duplicates.clusters(len(slices), similar.where(similar.score >= wanted.slice))
    same = duplicates.same_series(slices, similar, wanted.slice, wanted.series)
    patients = duplicates.same_patients(slices, same)
    return clusters, {
        "slices": len(slices),
        "plain_slices": int(slices.plain.sum()),
        "more_near_than_compared": similar.full,
        "pairs": int((similar.score >= wanted.slice).sum()),
        "clusters": int((np.bincount(clusters) > 1).sum()),
        "redundant_slices": len(slices) - int(clusters.max()) - 1,
        "series_pairs": len(same),
        "patients": [[f"{one:016x}", f"{other:016x}"] for one, other in patients.tolist()],
        "leaks": [list(row) for row in duplicates.leaks(slices, patients)],
    }


def _attributes(
    slices: Catalogue, labels: dict[int, str], options: argparse.Namespace, config: CurateConfig
) -> tuple[dict[str, weights.Attribute], dict[str, Any]]:
    """Return what is balanced, and what `curation.json` says about it: by headers, the user and an encoder."""
    rows = np.flatnonzero(slices.split == slices.splits.index(config.split))
    parts = body_parts.stated(slices, rows, labels, options.body_parts)
    found, more = weights.attributes(slices, config.balance), dict[str, Any]()
    if options.checkpoint:
        work = options.output / "work" / "features"
        vectors, source = encoded.vectors(options.data, options.checkpoint, config, slices.content[rows], work)
        more = {"encoder": source, "clusters": {"sizes": _sizes(len(rows), config)}}
        if weights.CLUSTER in config.balance:
            found[weights.CLUSTER] = _clusters(vectors, rows, len(slices), config)
        if config.body_parts.guess:
            parts = body_parts.guessed(parts, vectors, slices.subject[rows], config.body_parts, config.clusters.seed)
            more["body_parts"] = parts.figures
            _say_body_parts(parts.figures)
    elif weights.CLUSTER in config.balance:
        more = {"not_balanced": {weights.CLUSTER: "no --checkpoint"}}
    if "body_part" in found:
        codes = slices.codes["body_part"].astype(np.int64)
        codes[rows] = parts.codes
        found["body_part"] = replace(found["body_part"], words=parts.words, codes=codes)
    return found, more


def _sizes(count: int, config: CurateConfig) -> list[int]:
    return list(config.clusters.sizes) or hierarchy.usual_sizes(count)


def _clusters(vectors: np.ndarray, rows: np.ndarray, count: int, config: CurateConfig) -> weights.Attribute:
    """Return the clusters of the split's slices as an attribute of all slices."""
    wanted = config.clusters
    levels = hierarchy.build(
        vectors, _sizes(len(rows), config), wanted.rounds, wanted.nearest, wanted.passes, wanted.memory_gb * 1e9,
        wanted.seed,
    )  # fmt: skip
    codes = np.zeros(count, np.int64)
    codes[rows] = levels[0]
    words = [f"group {number}" for number in range(int(levels[-1].max()) + 1)]
    return weights.Attribute(words, codes, config.balance[weights.CLUSTER], None, tuple(levels[1:]))


def _say_body_parts(figures: dict[str, Any]) -> None:
    """Say how many body parts are stated, guessed and unknown, and how good the guesses are."""
    said = f"body part: stated of {figures['stated']:,} slices, guessed of {figures['guessed']:,}"
    if "labelled_right" in figures and figures["labelled_right"] is not None:
        said += (
            f" (of labelled slices, by those of other patients, {100 * figures['labelled_guessed']:.0f} % are guessed"
        )
        said += f", {100 * figures['labelled_right']:.1f} % of these right)"
    why = f"; {figures['why']}" if "why" in figures else "; body_parts.guess=false takes no guess"
    console.say(f"{said}, unknown of {figures['unknown']:,}{why}")


def _say_leaks(leaks: Sequence[Sequence[str]], config: CurateConfig) -> None:
    """Name patients who are in two splits. Raises SettingsError where they are refused."""
    if not leaks:
        return
    if config.leaks == "refuse":
        split, patient, other, copy = leaks[0]
        raise SettingsError(
            f"leaks=refuse: {len(leaks)} patients are in two splits, e.g. {patient} of {split} as {copy} of {other}; "
            "shard again with one id for each patient, or take leaks=leave_out"
        )
    done = "no draws for those in training" if config.leaks == "leave_out" else "take leaks=leave_out or shard again"
    console.say(f"LEAK: {len(leaks)} pairs of patients in different splits show the same person; {done}")
    for split, patient, other, copy in leaks[:_LEAKS_SAID]:
        console.say(f"LEAK: patient {patient} of {split} is patient {copy} of {other}")
    if len(leaks) > _LEAKS_SAID:
        console.say(f"LEAK: … and {len(leaks) - _LEAKS_SAID} more, in curation.json")


def _leaking(slices: Catalogue, leaks: Sequence[Sequence[str]], config: CurateConfig) -> np.ndarray:
    """Return (N,) bool: slices that get no draws, since their patient is in another split too."""
    if config.leaks != "leave_out":
        return np.zeros(len(slices), bool)
    named = {patient for split, one, other, copy in leaks for patient, where in ((one, split), (copy, other))
             if where == config.split}  # fmt: skip
    return np.isin(slices.subject, np.array([int(patient, 16) for patient in sorted(named)], np.uint64))


def _figures(weighed: weights.Weighed, banned: np.ndarray) -> dict[str, Any]:
    values = weighed.fit.weights
    return {
        "slices": len(values),
        "left_out_for_leaks": int(banned.sum()),
        "smallest": float(values.min()),
        "largest": float(values.max()),
        "effective_slices": round(balance.effective(values), 1),
        "rounds": weighed.fit.rounds,
        "largest_miss_of_a_share": round(weighed.fit.missed, 6),
        "left_out": weighed.left_out,
        "shares": weighed.shares,
    }


def _say_weights(found: dict[str, Any], copies: dict[str, Any]) -> None:
    console.say(
        f"{copies['redundant_slices']:,} slices repeat others; {copies['series_pairs']:,} pairs of series and "
        f"{len(copies['patients']):,} pairs of patients show the same"
    )
    for name, reason in found["left_out"].items():
        console.say(f"balance.{name}: nothing to balance, {reason}")
    for name, each in found["shares"].items():
        shown = sorted(each["words"].items(), key=lambda item: -item[1][0])[:4]
        moved = ", ".join(f"{word} {100 * one:.1f} → {100 * other:.1f} %" for word, (one, other) in shown)
        console.say(f"balance.{name}: {moved}{' …' if len(each['words']) > 4 else ''}")
    console.say(
        f"weights from {found['smallest']:.3g} to {found['largest']:.3g} times the mean; "
        f"as much as {found['effective_slices']:,.0f} of {found['slices']:,} slices of equal weight"
    )


@console.command
def main(arguments: list[str] | None = None) -> int:
    parser = console.parser(
        "Find near-duplicates in a finished data set and write how often a training draws each slice. "
        "Nothing is deleted; a second start goes on.",
        "Keys: split, name, duplicates.*, balance.WORD, clusters.*, body_parts.*, size, max_weight, min_weight, "
        "leaks=say|leave_out|refuse, workers "
        "(CurateConfig in eval/config.py).",
    )
    parser.add_argument("--data", required=True, type=Path, metavar="SHARDS", help="a finished data set")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="for curation.json and the page")
    parser.add_argument("--checkpoint", metavar="WHAT", help="an encoder, as of meddap probe: for clusters, body parts")
    parser.add_argument("--body-parts", type=Path, metavar="CSV", help="slice,body_part: names of some samples")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. max_weight=5")
    options = parser.parse_intermixed_args(arguments)
    config = load(CurateConfig, None, options.overrides)
    with files.output_errors(options.output), disk_errors(options.output):
        return curate(options, config)


if __name__ == "__main__":
    console.launch(main)
