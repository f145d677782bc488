"""Pairs of slices that look alike: hashes that are close, thumbnails that agree; found block by block and kept on disk.

WORK/pairs.bin    PAIR, as they were found; WORK/crowded.npy (n,) bool; WORK/pairs.json  how many slices are compared
A start that was killed goes on after the last block that `pairs.json` names. In memory: the hashes twice, one block.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from eval.curation import search
from eval.curation.alignment import agreement
from eval.curation.catalogue import VERSION, Catalogue
from eval.data import files
from meddap.console import progress
from meddap.disk import write_atomic
from meddap.records import read_json
from meddap.settings import SettingsError

PAIR = np.dtype([("first", "<u4"), ("second", "<u4"), ("score", "<f4")])
_BATCH = 512  # pairs compared at a time
SECONDS = 20.0  # between two records of what is done
_VERSION = 1  # of what makes two slices a pair
_FORM = {"of": list, "rows": int, "pairs": int}


@dataclass(frozen=True)
class Pairs:
    """Pairs of slices that agree at least weakly: (P,) numbers first < second, in order, (P,) float32 agreement.

    full  slices with so many hashes near theirs that not all of them may have been compared
    """

    first: np.ndarray
    second: np.ndarray
    score: np.ndarray
    full: int = 0

    def __len__(self) -> int:
        return len(self.first)

    def where(self, mask: np.ndarray) -> Pairs:
        return Pairs(self.first[mask], self.second[mask], self.score[mask], self.full)


def find(catalogue: Catalogue, work: Path, radius: int, most: int, weakest: float) -> Pairs:
    """Return all pairs whose hashes differ in at most `radius` bits and that agree by `weakest` or more.

    most  of its nearest hashes are looked at for each slice. Plain slices are in no pair.
    """
    work.mkdir(parents=True, exist_ok=True)
    usable = np.flatnonzero(~catalogue.plain)
    state = _state(work, made_from(catalogue.digest, radius, most, weakest))
    crowded, again = _crowded(work, len(usable), bool(state["rows"])), f"delete {work} and start again"
    if state["rows"] < len(usable):
        hashes = np.asarray(catalogue.hashes) if len(usable) == len(catalogue) else catalogue.hashes[usable]
        with (
            files.reading(work / "pairs.bin", again),
            open(work / "pairs.bin", "r+b" if state["rows"] else "wb") as file,
        ):
            file.truncate(state["pairs"] * PAIR.itemsize)
            file.seek(0, os.SEEK_END)
            blocks = search.near(hashes, radius, most, crowded, state["rows"])
            left = -(-(len(usable) - state["rows"]) // search.block_rows(len(usable)))
            said = time.monotonic()
            for first, second, stop in progress(blocks, left, "blocks of slices compared"):
                for kept in _agreeing(catalogue, usable[first], usable[second], weakest):
                    state["pairs"] += len(kept)
                    file.write(kept.tobytes())
                if stop == len(usable) or time.monotonic() - said > SECONDS:
                    file.flush()
                    os.fsync(file.fileno())
                    crowded.flush()
                    state["rows"], said = stop, time.monotonic()
                    write_atomic(work / "pairs.json", json.dumps(state).encode())
    with files.reading(work / "pairs.bin", again):
        found = np.fromfile(work / "pairs.bin", PAIR) if len(usable) else np.empty(0, PAIR)
        if len(found) != state["pairs"]:
            raise ValueError("length")
    return _sorted(found, int(crowded.sum()))


def made_from(digest: str, radius: int, most: int, weakest: float) -> list[Any]:
    """Return what pairs depend on, as `pairs.json` has it."""
    return [digest, VERSION, _VERSION, radius, most, weakest]


def _sorted(found: np.ndarray, full: int) -> Pairs:
    """Return pairs in order, each once: those of crowded slices may have been met from both ends."""
    if full:
        found.sort(order=["first", "second"], kind="stable")
        new = np.ones(len(found), bool)
        new[1:] = (found["first"][1:] != found["first"][:-1]) | (found["second"][1:] != found["second"][:-1])
        found = found if new.all() else found[new]
    first, second, score = (np.ascontiguousarray(found[name]) for name in ("first", "second", "score"))
    return Pairs(first, second, score, full)


def _agreeing(catalogue: Catalogue, first: np.ndarray, second: np.ndarray, weakest: float) -> Iterator[np.ndarray]:
    """Yield PAIR of the pairs that agree, in order, each once."""
    order = np.unique(first * len(catalogue) + second)
    first, second = np.divmod(order, len(catalogue))
    for start in range(0, len(first), _BATCH):
        mine = slice(start, start + _BATCH)
        score = agreement(catalogue.thumbnails[first[mine]], catalogue.thumbnails[second[mine]])
        kept = score >= weakest
        made = np.empty(int(kept.sum()), PAIR)
        made["first"], made["second"], made["score"] = first[mine][kept], second[mine][kept], score[kept]
        yield made


def _crowded(work: Path, count: int, again: bool) -> Any:
    with files.reading(work / "crowded.npy", f"delete {work} and start again"):
        return open_memmap(work / "crowded.npy", "r+" if again else "w+", bool, (count,))


def _state(work: Path, of: list[Any]) -> dict[str, Any]:
    """Return the state in `pairs.json`, or that of a new search if it belongs to other slices or settings."""
    path = work / "pairs.json"
    fresh = {"of": of, "rows": 0, "pairs": 0}
    if not path.is_file():
        return fresh
    found = read_json(path, _FORM, f"delete {work} and start again", SettingsError)
    return dict(found) if found["of"] == of else fresh
