"""Embeddings of new images: one vector per patient, series or slice.

    python -m eval.embed --checkpoint RUN --input DIR --output vectors.npz
    python -m eval.embed --checkpoint RUN --data SHARDS --output FOLDER --level slice

The vectors are the features that probes read. Raw images are prepared by the sharding command, with the settings of the
data set that the checkpoint was trained on.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.lib.format import open_memmap

from eval import ranges
from eval.config import EmbedConfig, TaskConfig
from eval.data import features
from eval.data.cohorts import pool
from eval.data.examples import Examples, ends
from eval.data.features import StoredFeatures
from eval.encoders import encoder, windows
from eval.encoders.encoder import FrozenEncoder
from eval.intake import preparation, raw, unlabelled
from eval.intake.command import (
    LEFT_OUT,
    add_inputs,
    begin,
    check_ids,
    compare,
    ended,
    left_out,
    made_with,
    named,
    say_left_out,
    taken_in,
    work_folder,
)
from eval.reporting import vectors
from eval.reporting.vectors import Vectors
from meddap import console
from meddap.disk import sole_writer
from meddap.ranges import check_ranges
from meddap.settings import SettingsError, load

Level = Literal["patient", "series", "slice"]
_ROWS = 8192  # slices at a time


def embed(options: argparse.Namespace, config: EmbedConfig) -> int:
    """Write the vectors that the options ask for; return the exit status. Raises MeddapError."""
    check_ranges("", config, ranges.EMBED)
    vectors.check(options.output)
    check_ids(options)
    task = TaskConfig(data=str(options.data or ""), size=config.size, window=config.window)
    task = replace(task, batch_size=config.batch_size, bf16=config.bf16)
    task, about_window = windows.chosen(options.checkpoint, task)
    frozen = encoder.load(options.checkpoint, task)
    made = _made(options, config, frozen)
    if finished(options.output, made):
        return 0
    work = work_folder(options.output)
    with sole_writer(work):
        begin(options.output, work, made)
        how = preparation.of_checkpoint(options.checkpoint, options.like, options.modality) if options.input else None
        intake = taken_in(options, how, config.workers, work)
        examples = unlabelled.load(str(intake.root), work / "slices", config.stride, config.split)
        console.say(f"{frozen.source}: {len(examples)} slices, {config.size} pixels, tokens={config.tokens}")
        if about_window:
            console.say(about_window)
        found = features.extract(frozen, examples, task, work / "cache")
        rows = left_out(intake, options.keep_ids) if options.input else []  # of shards the manifest says it
        made |= {"slices": len(examples), "left_out": rows}
        whole = collect(found, examples, options.level, config, work)
        columns = named(whole.columns, intake) if options.keep_ids else whole.columns
        vectors.write(options.output, Vectors(whole.values, columns, made))
    console.say(f"{options.output}: {len(whole.values)} vectors of {whole.values.shape[1]} numbers")
    shutil.rmtree(work)
    return say_left_out(len({row["source"] for row in rows}))


def collect(found: StoredFeatures, examples: Examples, level: Level, config: EmbedConfig, work: Path) -> Vectors:
    """Return vectors of all units; examples are sorted by patient, series and slice.

    A series is the mean or maximum (config.pool) of its slices, a patient that of the patient's series.
    """
    series = ends(examples.studies)
    first = series[:-1]
    patients = ends(examples.subjects[first])
    count = {"slice": len(examples), "series": len(first), "patient": len(patients) - 1}[level]
    width = _slices(found, slice(0, 1), config).shape[1]
    out = open_memmap(work / "vectors.npy", "w+", np.float32, (count, width))
    if level == "slice":
        for start in range(0, count, _ROWS):
            rows = slice(start, min(start + _ROWS, count))
            out[rows] = _slices(found, rows, config)
        places: slice | np.ndarray = slice(None)
    else:
        pooled = _pooled(found, series, config)
        for number, (start, stop) in enumerate(zip(patients[:-1], patients[1:])):
            mine = np.stack([next(pooled) for _ in range(start, stop)])
            if level == "series":
                out[start:stop] = mine
            else:
                out[number] = pool(mine, np.zeros(len(mine), np.int64), config.pool)[0]
        places = first if level == "series" else first[patients[:-1]]
    out.flush()
    columns = {"patient": examples.subjects[places]}
    columns |= {} if level == "patient" else {"series": examples.studies[places]}
    columns |= {"slice": examples.orders[places]} if level == "slice" else {}
    return Vectors(out, columns, {})


def _pooled(found: StoredFeatures, series: np.ndarray, config: EmbedConfig) -> Iterator[np.ndarray]:
    """Yield (D,) of each series."""
    for start, stop in zip(series[:-1], series[1:]):
        mine = _slices(found, slice(start, stop), config)
        yield pool(mine, np.zeros(len(mine), np.int64), config.pool)[0]


def _slices(found: StoredFeatures, rows: slice, config: EmbedConfig) -> np.ndarray:
    """Return (n, D) float32 of some slices: tokens of the last blocks, then the last mean patch."""
    cls, mean, last = found.cls[rows], found.mean[rows], config.blocks
    if last > cls.shape[1]:
        raise SettingsError(f"blocks={last}: the encoder has {cls.shape[1]} blocks")
    if config.tokens == "mean_patch":
        return np.asarray(mean[:, -last:]).reshape(len(mean), -1)
    tokens = np.asarray(cls[:, -last:]).reshape(len(cls), -1)
    return tokens if config.tokens == "cls" else np.concatenate([tokens, mean[:, -1]], axis=1)


def finished(output: Path, made: dict[str, Any]) -> bool:
    """Return whether the output is there. Raises SettingsError if it was made otherwise."""
    before = vectors.made(output)
    if before is None:
        return False
    compare(output, before, made)
    console.say(f"{output}: finished before, {before.get('slices')} slices; the images were not looked at again")
    return True


def _made(options: argparse.Namespace, config: EmbedConfig, frozen: FrozenEncoder) -> dict[str, Any]:
    """Return how the vectors are made, as far as it is known before the images are read."""
    of_encoder = {"encoder": frozen.source, "digest": frozen.digest}
    return {**of_encoder, "level": options.level, **made_with(options, config)}


@console.command
def main(arguments: list[str] | None = None) -> int:
    parser = console.parser(
        "Write one vector per patient, series or slice: the features that probes read. A second start continues.",
        f"Exit status {LEFT_OUT}: done, but some inputs were left out. Keys: size, tokens=cls|mean_patch|both, blocks, "
        "pool=mean|max, stride, split, workers, batch_size, bf16 (EmbedConfig in eval/config.py).",
    )
    parser.add_argument("--checkpoint", required=True, metavar="WHAT", help="as of meddap probe")
    add_inputs(parser)
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="WHERE",
        help="FILE.npz, FILE.parquet, or a folder",
    )
    parser.add_argument("--level", choices=get_args(Level), default="patient", help="default: patient")
    parser.add_argument("--like", metavar="SHARDS", help="prepare raw images as those of this data set")
    parser.add_argument("--modality", choices=list(raw.COMMANDS), help="prepare raw images by default settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. size=512 tokens=cls")
    options = parser.parse_intermixed_args(arguments)
    return ended(options.output, lambda: embed(options, load(EmbedConfig, None, options.overrides)))


if __name__ == "__main__":
    console.launch(main)
