"""One pass over the slices of a data set: descriptors on the disk, and what their headers say, as numbers of words.

WORK/thumbnails.npy  (N, SIDE, SIDE) uint8; WORK/hashes.npy (N, BYTES) uint8; WORK/facts.npy (N,) FACTS
WORK/words.json      the words behind the numbers, and how many slices are done: a second start goes on from there

In memory: the indices of the shards, some 40 bytes a slice, and one stretch of slices.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from data_prep.schema import (
    CT,
    UNDECODABLE,
    SchemaError,
    Slice,
    Split,
    content_digest,
    grey,
    read_dataset,
    short_hash,
    text_sha256,
)
from eval.curation.descriptors import BYTES, SIDE, Descriptor, describe
from eval.data import files
from meddap.console import progress
from meddap.disk import write_atomic
from meddap.records import read_json
from meddap.settings import SettingsError

ATTRIBUTES = ("body_part", "manufacturer", "model", "sequence")
UNKNOWN = "not stated"
FACTS = np.dtype([("plain", "?"), ("content", "<u8"), ("key", "<u8"), *((name, "<u4") for name in ATTRIBUTES)])
_STRETCH = 2048  # slices between two records of what is done
VERSION = 3  # of the descriptors
_FORM = {"digest": str, "version": int, "done": int, "words": dict.fromkeys(ATTRIBUTES, [str])}


Looked = tuple[Descriptor, tuple[int, int], dict[str, str]]


@dataclass(frozen=True)
class Catalogue:
    """N slices of all splits of a data set, split after split in the order of their indices.

    digest      of the data set
    splits      names of the splits; `split` (N,) is the number of each slice's
    subject, series  (N,) uint64, first eight bytes of the salted hashes; order (N,) place in the series
    thumbnails, hashes  memory-mapped; plain (N,) bool: slices that show nothing
    content     (N,) uint64 digests of pixels; key (N,) uint64, `key_hash` of the names of the samples
    words       attribute → its words; `codes[attribute]` (N,) is the number of each slice's word
    """

    digest: str
    splits: tuple[str, ...]
    split: np.ndarray
    subject: np.ndarray
    series: np.ndarray
    order: np.ndarray
    thumbnails: np.ndarray
    hashes: np.ndarray
    plain: np.ndarray
    content: np.ndarray
    key: np.ndarray
    words: dict[str, list[str]]
    codes: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.split)


def read(root: Path, work: Path, workers: int = 1) -> Catalogue:
    """Return the catalogue of a finished data set, from `work` as far as it is there.

    Raises SchemaError for damaged shards, SettingsError where there are no slices.
    """
    dataset = read_dataset(root)
    names = [name for name in dataset["splits"] if dataset["splits"][name]["samples"]]
    splits = [Split(root, name) for name in names]
    if not splits:
        raise SettingsError(f"{root}: holds no slices; shard more patients")
    count = sum(map(len, splits))
    work.mkdir(parents=True, exist_ok=True)
    state = _state(work, dataset["digest"])
    if state["done"] < count:
        _fill(splits, count, work, state, workers)
    arrays = {name: files.mapped(work / f"{name}.npy", _again(work), shape) for name, shape in _shapes(count).items()}
    facts = np.asarray(arrays["facts"])
    return Catalogue(
        digest=dataset["digest"],
        splits=tuple(names),
        split=np.repeat(np.arange(len(splits), dtype=np.uint8), [len(split) for split in splits]),
        **{name: np.concatenate([split.index[name] for split in splits]) for name in ("subject", "series", "order")},
        thumbnails=arrays["thumbnails"],
        hashes=arrays["hashes"],
        plain=facts["plain"],
        content=facts["content"],
        key=facts["key"],
        words=state["words"],
        codes={name: facts[name] for name in ATTRIBUTES},
    )


def key_hash(key: str) -> int:
    """Return eight bytes that stand for the name of a sample."""
    return short_hash(text_sha256(key))


def facts_of(sample: Slice) -> dict[str, str]:
    """Return attribute → word of a slice, UNKNOWN where its header did not say."""
    said = {name: str(sample.meta.get(name) or UNKNOWN) for name in ATTRIBUTES}
    maker = "" if said["manufacturer"] == UNKNOWN else said["manufacturer"]
    if said["model"] != UNKNOWN:  # two makers may give a model the same name
        said["model"] = f"{maker} {said['model']}".strip()
    return {**said, "sequence": "+".join(sorted(sample.sequences))}


def described(sample: Slice) -> Descriptor:
    """Return the descriptor of a slice: of its first sequence by name, where it has several."""
    place = min(range(len(sample.sequences)), key=lambda number: sample.sequences[number])
    planes = sample.planes[place]
    return describe(planes[0] if sample.channels == 1 else grey(planes), sample.sequences[place] == CT)


def _fill(splits: Sequence[Split], count: int, work: Path, state: dict[str, Any], workers: int) -> None:
    kinds: dict[str, Any] = {"thumbnails": np.uint8, "hashes": np.uint8, "facts": FACTS}
    arrays, mode = {}, "r+" if state["done"] else "w+"
    for name, shape in _shapes(count).items():
        with files.reading(work / f"{name}.npy", _again(work)):
            arrays[name] = open_memmap(work / f"{name}.npy", mode, kinds[name], shape)
    numbers = {name: {word: place for place, word in enumerate(words)} for name, words in state["words"].items()}
    first = state["done"]
    with ThreadPoolExecutor(workers) as pool:
        for place, (found, ids, said) in enumerate(
            progress(_look(splits, first, pool), count - first, "slices"), first
        ):
            arrays["thumbnails"][place], arrays["hashes"][place] = found.thumbnail, found.hash
            codes = (numbers[name].setdefault(said[name], len(numbers[name])) for name in ATTRIBUTES)
            arrays["facts"][place] = (found.plain, *ids, *codes)
            if (place + 1) % _STRETCH == 0 or place + 1 == count:
                for array in arrays.values():
                    array.flush()
                state |= {"done": place + 1, "words": {name: list(words) for name, words in numbers.items()}}
                write_atomic(work / "words.json", json.dumps(state).encode())


def _look(splits: Sequence[Split], first: int, pool: ThreadPoolExecutor) -> Iterator[Looked]:
    """Yield descriptor, digests of pixels and name, and facts of each slice from number `first` on, some at a time."""

    def look(split: Split, number: int) -> Looked:
        sample = split[number]
        try:
            return described(sample), (content_digest(sample.pixels), key_hash(sample.key)), facts_of(sample)
        except UNDECODABLE as error:
            raise SchemaError(f"{split.root}: {split.name}: sample {number}: {error}") from error

    for split in splits:
        skipped = min(first, len(split))
        first -= skipped
        for start in range(skipped, len(split), 64):
            numbers = range(start, min(start + 64, len(split)))
            yield from pool.map(look, [split] * len(numbers), numbers)


def _state(work: Path, digest: str) -> dict[str, Any]:
    """Return what `words.json` says; as at the start where it is of other data or another version of this file."""
    fresh = {"digest": digest, "version": VERSION, "done": 0, "words": {name: [UNKNOWN] for name in ATTRIBUTES}}
    path = work / "words.json"
    if not path.is_file():
        return fresh
    found = read_json(path, _FORM, _again(work), SettingsError)
    return dict(found) if (found["digest"], found["version"]) == (digest, VERSION) else fresh


def _again(work: Path) -> str:
    return f"delete {work} and start again"


def _shapes(count: int) -> dict[str, tuple[int, ...]]:
    return {"thumbnails": (count, SIDE, SIDE), "hashes": (count, BYTES), "facts": (count,)}
