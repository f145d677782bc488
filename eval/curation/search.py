"""Hashes that differ in few bits: exact, by faiss if it is installed (extra `curate`), else by blocks in NumPy."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_QUERIES = 4096  # at a time; with few of them faiss is half as fast
_BLOCK_BYTES = 64e6  # of distances and what they are counted from, at a time, in NumPy
_ONES = np.array([bin(value).count("1") for value in range(256)], np.uint8)


def engine() -> str:
    """Return what searches: "faiss" or "numpy"."""
    try:
        importlib.import_module("faiss")
    except ImportError:
        return "numpy"
    return "faiss"


def block_rows(count: int, by: str = "") -> int:
    """Return how many of so many hashes are compared with all of them at a time."""
    return _QUERIES if (by or engine()) == "faiss" else max(1, min(_QUERIES, int(_BLOCK_BYTES / (16 * count))))


def near(
    hashes: np.ndarray, radius: int, most: int, crowded: np.ndarray, begin: int = 0, by: str = ""
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield pairs (first, second), first < second, of hashes that differ in at most `radius` bits, block by block.

    hashes   (N, BYTES) uint8
    most     of its nearest ones are taken for each hash
    crowded  (N,) bool, filled on the way: hashes that may have more near ones than were taken. A pair of theirs may be
             met from both its ends; all others are met once
    begin    number of hashes that are done; behind the pairs stands how many are done after this block
    by       "faiss" or "numpy"; "": whichever is there
    """
    count = len(hashes)
    if not count:
        return
    search = _faiss(hashes) if (by or engine()) == "faiss" else _numpy(hashes)
    most = min(most + 1, count)  # itself among them
    block = block_rows(count, by)
    for start in range(begin, count, block):
        queries = np.arange(start, min(start + block, count))
        distances, neighbours = search(hashes[queries], most)
        close = (distances <= radius) & (neighbours >= 0)
        crowded[queries] = close.all(axis=1) if most < count else False
        query, other = np.repeat(queries, close.sum(axis=1)), neighbours[close]
        kept = (other > query) | ((other < query) & crowded[other])  # else it was met from the other end
        query, other = query[kept], other[kept]
        yield np.minimum(query, other), np.maximum(query, other), int(queries[-1]) + 1


def _faiss(hashes: np.ndarray) -> Any:
    faiss = importlib.import_module("faiss")
    index = faiss.IndexBinaryFlat(8 * hashes.shape[1])
    for start in range(0, len(hashes), 1 << 16):
        index.add(np.ascontiguousarray(hashes[start : start + (1 << 16)]))

    def search(queries: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        found: tuple[np.ndarray, np.ndarray] = index.search(np.ascontiguousarray(queries), most)
        return found

    return search


def _numpy(hashes: np.ndarray) -> Any:
    words = np.ascontiguousarray(hashes).view(np.uint64)

    def search(queries: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        asked = np.ascontiguousarray(queries).view(np.uint64)
        distances = np.zeros((len(asked), len(words)), np.uint16)
        for column in range(words.shape[1]):
            distances += _ones(asked[:, column, None] ^ words[None, :, column])
        nearest = np.argpartition(distances, most - 1, axis=1)[:, :most]
        return np.take_along_axis(distances, nearest, axis=1), nearest

    return search


def _ones(words: np.ndarray) -> np.ndarray:
    """Return the number of bits that are 1 in each uint64; NumPy 1 has no bitwise_count."""
    if hasattr(np, "bitwise_count"):
        counted: np.ndarray = np.bitwise_count(words)
        return counted
    return _ONES[words[..., None].view(np.uint8)].sum(axis=-1, dtype=np.uint8)
