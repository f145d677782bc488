"""Memory and time of `meddap curate` on millions of slices: the command itself, on generated slices and features.

    python benchmarks/curation.py --slices 5000000 --clusters 2000,200,20 --compared 8192 --work FOLDER

What depends on images is generated as a first start leaves it in its work folder: pictures of 40 × 40 values that
change slowly from slice to slice, hashes, words of headers, and an encoder's features. `--compared` slices are left to
be compared with all others. The command then goes on from there, in a process whose memory is watched. Files: 2.5 kB a
slice and 2 bytes for each feature.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from numpy.lib.format import open_memmap
from scipy.fft import dctn

from benchmarks.duplicates import eight_bits, renamed
from data_prep import schema
from data_prep.schema import Slice
from eval import curate
from eval.config import DuplicatesConfig
from eval.curation import catalogue, duplicates, encoded, hierarchy, pairs
from eval.curation.descriptors import BYTES, SIDE
from eval.intake import unlabelled
from meddap import console
from meddap.disk import file_sha256

_NEIGHBOURS = 8  # slices above each one with which it makes a pair
_TILE, _ROWS = 100, 100_000  # series with pictures, rows of features of their own; the others repeat them
_FLIPPED = 0.1  # share of the bits of a hash
_KINDS, _SPREAD = 200, 0.7  # groups of features, of falling size, and their spread


def many(root: Path, count: int, of_series: int = 250) -> Path:
    """Write a data set of `count` slices whose index names one sample of each series over and over."""
    path, series = root / "train" / "000000.tar", -(-count // of_series)
    path.parent.mkdir(parents=True)
    index, offset = np.empty(count, schema.INDEX_DTYPE), 0
    flat = Slice(np.zeros((1, 8, 8), np.int16), ("ct",), (1.0, 1.0), 0.0, "", "", 0, "", (0, 8, 0, 8))
    with open(path, "wb") as file:
        for number in range(series):
            sample = renamed(flat, number, 0, eight_bits(-160, 240))
            block = b"".join(schema.tar_block(*member) for member in schema.encode(sample))
            file.write(block)
            mine = index[number * of_series : (number + 1) * of_series]
            mine["offset"], mine["size"], mine["order"] = offset, len(block), np.arange(len(mine))
            mine["subject"], mine["series"] = schema.short_hash(sample.subject), schema.short_hash(sample.series)
            offset += len(block)
        file.write(schema.TAR_END)
    np.save(schema.index_of(path), index)
    np.save(schema.content_of(path), np.arange(count, dtype=np.uint64))
    shard = {"name": "train/000000.tar", "samples": count, "bytes": path.stat().st_size,
             "sha256": file_sha256(path), "index_sha256": file_sha256(schema.index_of(path))}  # fmt: skip
    described = {"train": {"shards": [shard], "samples": count, "series": series, "subjects": series}}
    dataset = {"schema": schema.VERSION, "digest": schema.dataset_digest(described), "splits": described,
               "statistics": {}, "labels": {}, "made_with": {}}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(dataset))
    return root


def looked_at(root: Path, work: Path, count: int, of_series: int = 250) -> None:
    """Write what the command keeps of the slices' pictures and headers."""
    work.mkdir(parents=True)
    thumbnails = open_memmap(work / "thumbnails.npy", "w+", np.uint8, (count, SIDE, SIDE))
    hashes = open_memmap(work / "hashes.npy", "w+", np.uint8, (count, BYTES))
    facts = open_memmap(work / "facts.npy", "w+", catalogue.FACTS, (count,))
    facts["content"], facts["key"] = np.arange(count), np.arange(count)
    rng, size = np.random.default_rng(3), min(count, _TILE * of_series)
    pictures, bits = _series(rng, -(-size // of_series), of_series)
    for start in range(0, count, size):
        mine = slice(start, min(start + size, count))
        length = mine.stop - start
        thumbnails[mine] = pictures[:length]
        hashes[mine] = bits[:length] ^ rng.integers(0, 256, BYTES, np.uint8)  # other hashes, as of other patients
        for name in ("body_part", "manufacturer", "model"):
            of = np.minimum(rng.exponential(2, -(-length // of_series)), 9).astype(np.uint32)
            facts[name][mine] = np.repeat(of, of_series)[:length]
    for array in (thumbnails, hashes, facts):
        array.flush()
    words = {name: [catalogue.UNKNOWN, *(f"word {number}" for number in range(9))] for name in catalogue.ATTRIBUTES}
    digest = schema.read_dataset(root)["digest"]
    # the version and the words as `catalogue.read` records them
    state = {"digest": digest, "version": catalogue.VERSION, "done": count, "words": words}
    (work / "words.json").write_text(json.dumps(state))


def _series(rng: np.random.Generator, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures and hashes of so many series, each of which changes slowly from one end to the other."""
    finer = np.repeat(np.eye(10, dtype=np.float32), SIDE // 10, axis=0)
    ends = finer @ rng.normal(size=(count, 2, 10, 10)).astype(np.float32) @ finer.T
    along = np.linspace(0, np.pi / 2, length, dtype=np.float32)[:, None, None]
    images = (np.cos(along) * ends[:, :1] + np.sin(along) * ends[:, 1:]).reshape(-1, SIDE, SIDE)
    bits = dctn(images, axes=(1, 2), norm="ortho")[:, :16, :16].reshape(len(images), -1) > 0
    bits ^= rng.random(bits.shape, np.float32) < _FLIPPED
    return (128 + 40 * images).clip(0, 255).astype(np.uint8), np.packbits(bits, axis=1)


def compared(work: Path, digest: str, count: int, done: int, of_series: int = 250) -> None:
    """Write the pairs of the first `done` slices as a search leaves them that was killed there."""
    wanted, rng, total = DuplicatesConfig(), np.random.default_rng(5), 0
    with open(work / "pairs.bin", "wb") as file:
        for start in range(0, done, 100 * of_series):
            first = np.repeat(np.arange(start, min(start + 100 * of_series, done)), _NEIGHBOURS)
            second = first + np.tile(np.arange(1, _NEIGHBOURS + 1), len(first) // _NEIGHBOURS)
            kept = (second // of_series == first // of_series) & (second < count)
            made = np.empty(int(kept.sum()), pairs.PAIR)
            made["first"], made["second"] = first[kept], second[kept]
            made["score"] = rng.uniform(wanted.similar, 1, len(made))
            file.write(made.tobytes())
            total += len(made)
    open_memmap(work / "crowded.npy", "w+", bool, (count,)).flush()
    of = pairs.made_from(digest, wanted.radius, wanted.neighbours, wanted.similar)
    (work / "pairs.json").write_text(json.dumps({"of": of, "rows": done, "pairs": total}))


def features(path: Path, count: int, width: int) -> None:
    """Write (count, width) float16 of length 1 around centres of falling frequency."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(_KINDS, width)).astype(np.float32)
    block = centres[np.minimum(rng.zipf(1.5, min(count, _ROWS)) - 1, _KINDS - 1)]
    block = block + _SPREAD * rng.standard_normal(block.shape, np.float32)
    unit = (block / np.linalg.norm(block, axis=1, keepdims=True)).astype(np.float16)
    array = open_memmap(path, "w+", np.float16, (count, width))
    for start in range(0, count, len(unit)):
        array[start : start + len(unit)] = unit[rng.permutation(len(unit))[: count - start]]
    array.flush()


class Watch:
    """Prints seconds and the most memory of this process between two marks: its own, and with mapped files."""

    def __init__(self) -> None:
        self._most, self._began = 0, time.monotonic()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self._most = max(self._most, _status("RssAnon"))
            time.sleep(0.05)

    def mark(self, what: str) -> None:
        most, self._most = max(self._most, _status("RssAnon")), 0
        seconds, self._began = time.monotonic() - self._began, time.monotonic()
        console.show(f"{what:40} {seconds:8.1f} s {most / 1e6:6.2f} GB, files {_status('RssFile') / 1e6:6.2f} GB")


def _status(name: str) -> int:
    """Return a line of /proc/self/status, in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}: this system is not Linux")


def run(options: argparse.Namespace) -> int:
    """Run the command as it is, print what its stages take, and return its exit status."""
    root, output, watch = options.work / "shards", options.work / "out", Watch()
    for module, name in ((catalogue, "read"), (pairs, "find"), (duplicates, "clusters"), (hierarchy, "build")):
        setattr(module, name, _marked(getattr(module, name), f"{module.__name__}.{name}", watch))
    encoded.vectors = lambda *_: (np.load(options.work / "features.npy", mmap_mode="r"), "generated")
    words = ["--data", str(root), "--output", str(output), "--checkpoint", "generated"]
    words += [f"clusters.{name}" for name in (f"sizes=[{options.clusters}]", "passes=2", "rounds=1")]
    status = curate.main([*words, "max_weight=1000", "min_weight=0"])
    watch.mark("weights, curation.json, page")
    found = unlabelled.load(str(root), options.work / "slices")
    watch.mark(f"eval.intake.unlabelled.load, {len(found):,} slices")
    return status


def _marked(function: Callable[..., Any], what: str, watch: Watch) -> Callable[..., Any]:
    def called(*given: Any, **named: Any) -> Any:
        watch.mark(f"  before {what}")
        result = function(*given, **named)
        watch.mark(what)
        return result

    return called


def main(arguments: list[str] | None = None) -> int:
    parser = console.parser("Memory and time of `meddap curate` on generated slices and features.")
    parser.add_argument("--slices", type=int, default=5_000_000, metavar="N")
    parser.add_argument("--width", type=int, default=384, metavar="D", help="of the features")
    parser.add_argument("--clusters", default="2000,200,20", metavar="K,…", help="of each level")
    parser.add_argument("--compared", type=int, metavar="N", help="slices compared with all others (default: all)")
    parser.add_argument("--work", required=True, type=Path, metavar="FOLDER", help="new, for some 2.5 kB a slice")
    options = parser.parse_args(arguments)
    done = 0 if options.compared is None else max(0, options.slices - options.compared)
    root = many(options.work / "shards", options.slices)
    work, digest = options.work / "out" / "work", schema.read_dataset(root)["digest"]
    looked_at(root, work, options.slices)
    compared(work, digest, options.slices, done)
    features(options.work / "features.npy", options.slices, options.width)
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
