"""Frozen features of a task's examples: extracted once, resumable, memory-mapped.

CACHE/features-<hash>/cls.npy      (N, K, D) float32: cls token of each of the last K blocks, the last one last
CACHE/features-<hash>/mean.npy     (N, K, D) float32: mean patch of the same blocks
CACHE/features-<hash>/patches.npy  (N, P, blocks · D) float16, only where a probe needs patches
CACHE/features-<hash>/done.json    examples that are written so far; all of them where it is finished
CACHE/maps-<hash>.npy              (N, R, R) uint8 label maps of the squares that the encoder sees

The hash is over the encoder, the pixels' digests and the preparation. A start that was killed goes on where the last
whole stretch was written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from tqdm import tqdm

from data_prep.disk import write_atomic
from data_prep.settings import SettingsError
from eval import images
from eval.config import TaskConfig
from eval.encoder import FrozenEncoder, Tokens
from eval.examples import Examples, Picture

LAST = 4  # blocks whose cls token and mean patch are kept
_STRETCH = 16  # batches between two records of what is done


@dataclass(frozen=True)
class Features:
    """Features of N examples; arrays as the module says, not yet in memory. `patches` is None where nobody needs it."""

    cls: np.ndarray
    mean: np.ndarray
    patches: np.ndarray | None

    def take(self, rows: np.ndarray) -> Features:
        """Features of some examples. cls and mean come into memory; patches stay on the disk until they are read."""
        patches = None if self.patches is None else Rows(self.patches, rows)
        return Features(np.asarray(self.cls[rows]), np.asarray(self.mean[rows]), patches)


class Rows:
    """Some rows of a memory-mapped array, read when they are asked for."""

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self._array, self._rows = array, np.asarray(rows)
        self.shape, self.dtype = (len(self._rows), *array.shape[1:]), array.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index) -> np.ndarray:
        return self._array[self._rows[index]]


def encode(
    encoder: FrozenEncoder, pictures: Sequence[Picture], size: int, blocks: Sequence[int]
) -> tuple[Tokens, torch.Tensor]:
    """Tokens of each block for some pictures, and their images (N, S, size, size) in 0…1 (S of the first one).

    An encoder of one channel sees the sequences one after the other; the features of those that are there are averaged.
    """
    units = [images.unit(images.image(each, size), each, encoder.window) for each in pictures]
    channels = getattr(encoder, "sequences", None)
    if channels:
        stacked = torch.zeros(len(pictures), len(channels), size, size)
        present = torch.zeros(len(pictures), len(channels), dtype=torch.bool)
        for row, (picture, planes) in enumerate(zip(pictures, units)):
            for name, plane in zip(picture.sequences, planes):
                if name in channels:
                    stacked[row, channels.index(name)], present[row, channels.index(name)] = plane, True
        return encoder.features(encoder.prepare(stacked), blocks, present), stacked
    counts = torch.tensor([len(each) for each in units])
    found = encoder.features(encoder.prepare(torch.cat(units)[:, None]), blocks)
    if (counts == 1).all():
        return found, torch.stack(units)
    owner = torch.repeat_interleave(torch.arange(len(pictures)), counts)

    def averaged(tokens: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(pictures), *tokens.shape[1:]).index_add_(0, owner, tokens)
        return total / counts.view(-1, *(1,) * (tokens.dim() - 1))

    return [(averaged(cls), averaged(patches)) for cls, patches in found], torch.stack([each[:1] for each in units])


def extract(encoder: FrozenEncoder, examples: Examples, task: TaskConfig, cache: Path, patches: bool) -> Features:
    """Features of all examples, from the cache where they are there."""
    if task.size % encoder.patch_size:
        raise SettingsError(f"size={task.size}: no multiple of the encoder's patch size {encoder.patch_size}")
    folder = cache / f"features-{_key(encoder, examples, task, patches)}"
    if not patches and not folder.exists():  # one with patches serves as well
        richer = cache / f"features-{_key(encoder, examples, task, True)}"
        folder = richer if _done(richer) == len(examples) else folder
    folder.mkdir(parents=True, exist_ok=True)
    if _done(folder) < len(examples):
        _write(folder, encoder, examples, task, patches)
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    return Features(arrays["cls"], arrays["mean"], arrays.get("patches") if patches else None)


def _key(encoder: FrozenEncoder, examples: Examples, task: TaskConfig, patches: bool) -> str:
    """Hash over all that the features depend on."""
    content = hashlib.sha256(np.ascontiguousarray(examples.digests).tobytes()).hexdigest()
    parts = (encoder.digest, content, task.size, list(task.blocks) if patches else None, task.bf16, LAST)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _done(folder: Path) -> int:
    try:
        return json.loads((folder / "done.json").read_text())["examples"]
    except (OSError, ValueError, KeyError):
        return 0


def _write(folder: Path, encoder: FrozenEncoder, examples: Examples, task: TaskConfig, patches: bool) -> None:
    """Extract what is missing. Arrays are flushed before `done.json` says that a stretch is written."""
    count, width, last = len(examples), encoder.embed_dim, min(LAST, encoder.depth)
    tail = list(range(-last, 0))
    blocks = [number % encoder.depth - encoder.depth for number in task.blocks] if patches else []
    shapes = {"cls": ((count, last, width), np.float32), "mean": ((count, last, width), np.float32)}
    if patches:
        grid = task.size // encoder.patch_size
        shapes["patches"] = ((count, grid * grid, len(blocks) * width), np.float16)
    first = _done(folder)
    arrays = {
        name: open_memmap(folder / f"{name}.npy", "r+" if first else "w+", kind, shape)
        for name, (shape, kind) in shapes.items()
    }
    starts = range(first, count, task.batch_size)
    with ThreadPoolExecutor(1) as reader:  # the next batch is read while this one is computed
        ahead = reader.submit(_pictures, examples, first, task)
        for number, start in enumerate(tqdm(starts, "features", disable=None, leave=False)):
            pictures, rows = ahead.result(), slice(start, min(start + task.batch_size, count))
            ahead = reader.submit(_pictures, examples, rows.stop, task)
            found, _ = encode(encoder, pictures, task.size, [*tail, *blocks])
            cls = torch.stack([each for each, _ in found[:last]], dim=1)
            mean = torch.stack([each.mean(dim=1) for _, each in found[:last]], dim=1)
            if not (torch.isfinite(cls).all() and torch.isfinite(mean).all()):
                raise SettingsError(
                    f"{encoder.source}: its features hold NaN or infinite values; take another checkpoint"
                )
            arrays["cls"][rows], arrays["mean"][rows] = cls.numpy(), mean.numpy()
            if patches:
                arrays["patches"][rows] = torch.cat([each for _, each in found[last:]], dim=2).half().numpy()
            if number % _STRETCH == _STRETCH - 1 or rows.stop == count:
                for array in arrays.values():
                    array.flush()
                write_atomic(folder / "done.json", json.dumps({"examples": rows.stop}).encode())


def _pictures(examples: Examples, start: int, task: TaskConfig) -> list[Picture]:
    return [examples.read(number) for number in range(start, min(start + task.batch_size, len(examples)))]


def label_maps(examples: Examples, side: int, cache: Path) -> np.ndarray:
    """(N, side, side) uint8 label maps of the squares that the encoder sees, nearest neighbour; memory-mapped."""
    content = hashlib.sha256(f"{examples.version} {list(examples.keys)}".encode()).hexdigest()
    path = cache / f"maps-{content[:16]}-{side}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.npy")
        maps = open_memmap(temporary, "w+", np.uint8, (len(examples), side, side))
        for number in tqdm(range(len(examples)), "label maps", disable=None, leave=False):
            maps[number] = images.labels(examples.read(number), side)
        maps.flush()
        os.replace(temporary, path)
    return np.load(path, mmap_mode="r")
