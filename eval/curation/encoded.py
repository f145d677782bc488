"""Features of the slices of one split by an encoder, as unit vectors in float16 on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from data_prep.schema import Split
from eval.config import CurateConfig, TaskConfig
from eval.data import features, files
from eval.data.examples import flat
from eval.data.sources import shards
from eval.encoders import encoder, windows
from meddap import console

_ROWS = 65536  # at a time


def vectors(
    root: Path, checkpoint: str, config: CurateConfig, content: np.ndarray, work: Path
) -> tuple[np.ndarray, str]:
    """Return (n, D) float16, memory-mapped: the cls token of the last block, of length 1, of each slice of the split,
    and which encoder it was.

    content  (n,) uint64 digests of the slices' pixels. What is in `work` is used again.
    """
    split, task = Split(root, config.split), TaskConfig(data=str(root), size=config.size, batch_size=config.batch_size)
    task, about_window = windows.chosen(checkpoint, task)
    if about_window:
        console.say(about_window)
    frozen = encoder.load(checkpoint, task)
    console.say(f"{frozen.source}: features of {len(split):,} slices, {config.size} pixels")
    numbers = np.arange(len(split))
    examples = flat(numbers, np.zeros((len(split), 0)), content, lambda row: shards.picture(split[row]), names=())
    found = features.extract(frozen, examples, task, work, last=1)
    path = work / "vectors.npy"
    with files.reading(path, f"delete {work} and start again"):
        made = open_memmap(path, "w+", np.float16, (len(split), frozen.embed_dim))
    for start in range(0, len(made), _ROWS):
        block = np.asarray(found.cls[start : start + _ROWS, -1], np.float32)
        made[start : start + _ROWS] = block / (np.linalg.norm(block, axis=1, keepdims=True) + 1e-12)
    made.flush()
    return files.mapped(path, f"delete {work} and start again"), f"{frozen.source} {frozen.digest[:16]}"
