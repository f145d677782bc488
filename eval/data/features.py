"""Frozen features of a task's examples: extracted once, resumable, memory-mapped.

CACHE/features-<hash>-<blocks>/cls.npy      (N, K, D) float32: cls token of each of the last K blocks, the last one last
CACHE/features-<hash>-<blocks>/mean.npy     (N, K, D) float32: mean patch of the same blocks
CACHE/features-<hash>-<blocks>/patches.npy  (N, P, blocks · D) float16, where a probe needs patches of some blocks
CACHE/features-<hash>-<blocks>/done.json    examples that are written so far; all of them where it is finished
CACHE/maps-<hash>.npy                       (N, R, R) uint8 label maps of the squares that the encoder sees
CACHE/images-<hash>.npy                     (N, S·C, size, size) float16 those squares, where a probe trains on images

The hash is over the encoder, the pixels' digests and the preparation. A start that was killed goes on where the last
whole stretch was written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from tqdm import tqdm

from eval.config import TaskConfig
from eval.data import files, images
from eval.data.examples import Examples, Picture
from eval.encoders.encoder import FrozenEncoder, Tokens
from eval.encoders.stored_vectors import StoredVectors
from meddap.console import progress
from meddap.disk import write_atomic
from meddap.records import read_json
from meddap.settings import SettingsError

LAST = 4  # blocks whose cls token and mean patch are kept, where nobody says how many
_STRETCH = 16  # batches between two records of what is done
_AGAIN = "delete it and start again"


@dataclass(frozen=True)
class StoredFeatures:
    """Features of N examples; arrays as the module says, not yet in memory.

    blocks  counted from 0, whose patch features lie side by side in `patches`; where nobody needs them () and None
    """

    cls: np.ndarray
    mean: np.ndarray
    patches: np.ndarray | Rows | None
    blocks: tuple[int, ...] = ()

    def take(self, rows: np.ndarray) -> StoredFeatures:
        """Return features of some examples. cls and mean come into memory; patches are read when asked for."""
        patches = None if self.patches is None else Rows(self.patches, rows)
        return StoredFeatures(np.asarray(self.cls[rows]), np.asarray(self.mean[rows]), patches, self.blocks)


class Rows:
    """Some rows of a memory-mapped array, read when they are asked for."""

    def __init__(self, array: np.ndarray | Rows, rows: np.ndarray) -> None:
        self._array, self._rows = array, np.asarray(rows)
        self.shape: tuple[int, ...] = (len(self._rows), *array.shape[1:])
        self.dtype: np.dtype[Any] = array.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | np.integer[Any] | slice | np.ndarray) -> np.ndarray:
        return self._array[self._rows[index]]


def encode(
    encoder: FrozenEncoder, pictures: Sequence[Picture], size: int, blocks: Sequence[int], sequence: str = ""
) -> Tokens:
    """Return tokens of each block for some pictures.

    An encoder of one sequence sees the sequences one after the other; the features of those that are there are
    averaged. One that has `windows` sees each of them in several windows at once, as its channels.

    sequence  name under which an encoder of several takes pictures of one; "": their own
    """
    channels = getattr(encoder, "channels", 1)
    units = [_channels_of(each, size, encoder, channels) for each in pictures]
    known = getattr(encoder, "sequences", None)
    if known:
        stacked = torch.zeros(len(pictures), len(known), channels, size, size)
        present = torch.zeros(len(pictures), len(known), dtype=torch.bool)
        for row, (picture, planes) in enumerate(zip(pictures, units)):
            for name, plane in zip(_named(picture, sequence), planes):
                if name in known:
                    stacked[row, known.index(name)], present[row, known.index(name)] = plane, True
        if not present.any(dim=1).all():
            if sequence:
                raise SettingsError(f"sequence={sequence}: {encoder.source} knows {', '.join(known)}; name one of them")
            names = ", ".join(sorted({name for picture in pictures for name in picture.sequences}))
            raise SettingsError(
                f"{encoder.source}: knows {', '.join(known)}, and some images have none of them ({names}); "
                "sequence=NAME says which of them images of one are taken as"
            )
        return encoder.features(encoder.prepare(stacked.flatten(1, 2)), blocks, present)
    counts = torch.tensor([len(each) for each in units])
    found = encoder.features(encoder.prepare(torch.cat(units)), blocks)
    if (counts == 1).all():
        return found
    owner = torch.repeat_interleave(torch.arange(len(pictures)), counts)

    def averaged(tokens: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(pictures), *tokens.shape[1:]).index_add_(0, owner, tokens)
        return total / counts.view(-1, *(1,) * (tokens.dim() - 1))

    return [(averaged(cls), averaged(patches)) for cls, patches in found]


def _named(picture: Picture, sequence: str) -> tuple[str, ...]:
    """Return the names of a picture's sequences. Raises SettingsError for several where one name is given."""
    if sequence and len(picture.sequences) > 1:
        raise SettingsError(f"sequence={sequence}: some images have {', '.join(picture.sequences)}; leave it out")
    return (sequence,) if sequence else picture.sequences


def _channels_of(picture: Picture, size: int, encoder: FrozenEncoder, channels: int) -> torch.Tensor:
    """Return (S, C, size, size) in 0…1: the channels of a picture, or its windows."""
    stored = images.image(picture, size)
    windows = getattr(encoder, "windows", None)
    if not windows:
        return images.of_channels(images.unit(stored, picture, encoder.window), picture, channels)
    seen = [images.of_channels(images.unit(stored, picture, window), picture, 1) for window in windows]
    return torch.cat(seen, dim=1)


def extract(
    encoder: FrozenEncoder,
    examples: Examples,
    task: TaskConfig,
    cache: Path,
    blocks: Sequence[int] = (),
    last: int = LAST,
) -> StoredFeatures:
    """Return features of all examples, from the cache where they are there.

    blocks  counted from 0, whose patch features are wanted too
    last    blocks whose cls token and mean patch are wanted, all of them where the encoder has fewer
    """
    if task.size % encoder.patch_size:
        raise SettingsError(f"size={task.size}: not a multiple of the encoder's patch size {encoder.patch_size}")
    if isinstance(encoder, StoredVectors):
        rows = encoder.rows(examples.keys.astype(np.int64))
        return StoredFeatures(rows[:, None], rows[:, None], None)  # there are no patches to take a mean of
    folder, there = _folder(cache, _key(encoder, examples, task, last), tuple(blocks), len(examples))
    folder.mkdir(parents=True, exist_ok=True)
    if _done(folder) < len(examples):
        _write(folder, encoder, examples, task, blocks, last)
    remedy = f"delete {folder} and start again"
    shapes = _shapes(encoder, len(examples), task, there, last)
    cls, mean = (files.mapped(folder / f"{name}.npy", remedy, shapes[name]) for name in ("cls", "mean"))
    if not blocks:
        return StoredFeatures(cls, mean, None)
    return StoredFeatures(cls, mean, files.mapped(folder / "patches.npy", remedy, shapes["patches"]), there)


def _folder(cache: Path, key: str, blocks: tuple[int, ...], count: int) -> tuple[Path, tuple[int, ...]]:
    """Return where the features are or will be, and the blocks there: a finished folder with more blocks serves."""
    for found in sorted(cache.glob(f"features-{key}*")):
        there = tuple(int(number) for number in found.name.split("-")[2:])
        if set(blocks) <= set(there) and _done(found) == count:
            return found, there
    return cache / "-".join(["features", key, *map(str, blocks)]), blocks


def _key(encoder: FrozenEncoder, examples: Examples, task: TaskConfig, last: int) -> str:
    """Return a hash over all that the features depend on."""
    content = hashlib.sha256(np.ascontiguousarray(examples.digests).tobytes()).hexdigest()
    parts = (encoder.digest, content, task.size, task.bf16, last, *([task.sequence] if task.sequence else []))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _done(folder: Path) -> int:
    """Return how many examples are written; 0 where the record is missing or damaged: then all is done again."""
    try:
        return int(json.loads((folder / "done.json").read_text())["examples"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _shapes(
    encoder: FrozenEncoder, count: int, task: TaskConfig, blocks: Sequence[int], last: int
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of a folder."""
    width, last = encoder.embed_dim, min(last, encoder.depth)
    shapes: dict[str, tuple[int, ...]] = {"cls": (count, last, width), "mean": (count, last, width)}
    if blocks:
        shapes["patches"] = count, (task.size // encoder.patch_size) ** 2, len(blocks) * width
    return shapes


def _write(
    folder: Path, encoder: FrozenEncoder, examples: Examples, task: TaskConfig, blocks: Sequence[int], last: int
) -> None:
    """Extract what is missing. Arrays are flushed before `done.json` says that a stretch is written."""
    count, shapes = len(examples), _shapes(encoder, len(examples), task, blocks, last)
    last = min(last, encoder.depth)
    tail, first, arrays = list(range(-last, 0)), _done(folder), {}
    for name, shape in shapes.items():
        with files.reading(folder / f"{name}.npy", f"delete {folder} and start again"):
            kind = np.float16 if name == "patches" else np.float32
            arrays[name] = open_memmap(folder / f"{name}.npy", "r+" if first else "w+", kind, shape)
    starts = range(first, count, task.batch_size)
    with ThreadPoolExecutor(1) as reader:  # the next batch is read while this one is computed
        ahead = reader.submit(_pictures, examples, first, task)
        for number, start in enumerate(progress(starts, len(starts), "batches of features")):
            pictures, rows = ahead.result(), slice(start, min(start + task.batch_size, count))
            ahead = reader.submit(_pictures, examples, rows.stop, task)
            found = encode(encoder, pictures, task.size, [*tail, *blocks], task.sequence)
            cls = torch.stack([each for each, _ in found[:last]], dim=1)
            mean = torch.stack([each.mean(dim=1) for _, each in found[:last]], dim=1)
            if not (torch.isfinite(cls).all() and torch.isfinite(mean).all()):
                raise SettingsError(
                    f"{encoder.source}: its features hold NaN or infinite values; take another checkpoint"
                )
            arrays["cls"][rows], arrays["mean"][rows] = cls.numpy(), mean.numpy()
            if blocks:
                arrays["patches"][rows] = torch.cat([each for _, each in found[last:]], dim=2).half().numpy()
            if number % _STRETCH == _STRETCH - 1 or rows.stop == count:
                for array in arrays.values():
                    array.flush()
                write_atomic(folder / "done.json", json.dumps({"examples": rows.stop}).encode())


def _pictures(examples: Examples, start: int, task: TaskConfig) -> list[Picture]:
    return [examples.read(number) for number in range(start, min(start + task.batch_size, len(examples)))]


def label_maps(examples: Examples, side: int, cache: Path) -> np.ndarray:
    """Return (N, side, side) uint8 label maps of the squares that the encoder sees, nearest neighbour; mapped."""
    content = hashlib.sha256(f"{examples.version} {list(examples.keys)}".encode()).hexdigest()
    path = cache / f"maps-{content[:16]}-{side}.npy"
    shape = (len(examples), side, side)
    return _stored(path, "label maps", np.uint8, shape, lambda number: images.labels(examples.read(number), side))


def sequences_of(examples: Examples, cache: Path) -> tuple[str, ...]:
    """Return the sequences of all examples, in the order in which they are met; from the cache where they are there."""
    content = hashlib.sha256(f"{examples.version} {list(examples.keys)}".encode()).hexdigest()
    path = cache / f"sequences-{content[:16]}.json"
    if not path.is_file():
        met = dict.fromkeys(name for row in range(len(examples)) for name in examples.read(row).sequences)
        write_atomic(path, json.dumps(list(met)).encode())
    return tuple(read_json(path, [str], _AGAIN))


def image_stack(
    examples: Examples,
    size: int,
    window: tuple[float, float],
    cache: Path,
    sequences: Sequence[str] | None = None,
    channels: int = 1,
) -> np.ndarray:
    """Return (N, S·C, size, size) float16 images in 0…1 as networks see them, memory-mapped.

    sequences  their S names, None for those of all examples in the order in which they are met; one that an example
               lacks is 0, one that is not among them is left out
    channels   C of each, 1 or 3
    """
    given = "" if sequences is None else f" {list(sequences)}"
    given += f" {channels} channels" if channels > 1 else ""
    content = hashlib.sha256(f"{examples.version} {list(examples.keys)} {window}{given}".encode()).hexdigest()
    path = cache / f"images-{content[:16]}-{size}.npy"
    if path.is_file():
        return files.mapped(path, _AGAIN)
    names = list(sequences_of(examples, cache) if sequences is None else sequences)

    def make(number: int) -> np.ndarray:
        picture = examples.read(number)
        planes = np.zeros((len(names), channels, size, size), np.float16)
        unit = images.unit(images.image(picture, size), picture, window)
        for name, plane in zip(picture.sequences, images.of_channels(unit, picture, channels).numpy()):
            if name in names:
                planes[names.index(name)] = plane
        return planes.reshape(-1, size, size)

    return _stored(path, "images", np.float16, (len(examples), len(names) * channels, size, size), make)


def _stored(path: Path, what: str, kind: type, shape: tuple[int, ...], make: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return the array at `path`, memory-mapped; where it is not there yet, `make` gives its rows."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.npy")
        array = open_memmap(temporary, "w+", kind, shape)
        for number in tqdm(range(len(array)), what, disable=None, leave=False):
            array[number] = make(number)
        array.flush()
        os.replace(temporary, path)
    return files.mapped(path, _AGAIN, shape)
