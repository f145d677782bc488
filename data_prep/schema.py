"""The on-disk contract: what a shard, its index and `dataset.json` hold.

Layout of a data set:

    OUT/dataset.json              every shard with counts, bytes, SHA-256; statistics; how it was made
    OUT/manifest.jsonl            a row per input series, accepted or rejected
    OUT/train/000000.tar          USTAR, mtime 0; samples `<key>.<sequence>.b2`, `<key>.seg.b2`, `<key>.json`. A .b2 is
                                  (H, W) of a grey sample, (3, H, W) red, green and blue of one in colour, whose
                                  .json then has "channels": 3
    OUT/train/000000.index.npy    INDEX_DTYPE, one row per sample, in the order of the tar
    OUT/train/000000.content.npy  uint64, `content_digest` of each sample's pixels, in the same order
    OUT/val/… OUT/test/…
    OUT/NAME.weights.npy          float32, how often a training draws each sample of a split by the others, in the order
                                  of its index. Made by whoever curates a data set, not by sharding
    OUT/NAME.weights.json         WEIGHTS: digest of the data set and split that they are for, how they were made; and,
                                  where they are known, the SHARES of body parts, scanners … before and after

The members of one sample lie side by side, its `.json` last, so that one read of (offset, size)
brings a whole sample. Needs numpy, blosc2, the standard library, and of ours only what needs no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from meddap.errors import MeddapError
from meddap.records import misfit, read_json

VERSION = 1
SPLITS = ("train", "val", "test")
AIR_HU = -1024
CT = "ct"  # the one sequence that is stored in HU; all others are MR signal on a scale of their own
CHANNELS = (1, 3)  # of a sample: grey, or red, green and blue
LUMA = (0.299, 0.587, 0.114)  # grey of red, green and blue (ITU-R BT.601)
# The uint16 values of the 0.5th and 99.5th percentile of an MR volume's foreground. One and a half times that span is
# free below and above, so that hardly anything is clipped; 16,384 steps between them keep 12-bit values exact.
MR_LOW, MR_HIGH = 24576, 40960
_SIGN = np.int16(-32768)
_OTHER_FILES = 512  # libraries, sockets and logs of a training
KEY = re.compile(r"[0-9a-z_-]+")  # no dot: WebDataset splits names at the first one

# One row per sample. `subject` and `series` are the first eight bytes of the salted hashes;
# `order` is the slice's place in its series, so that neighbours can be found.
INDEX_DTYPE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("subject", "<u8"), ("series", "<u8"), ("order", "<u4")])

_CODEC = {
    "codec": blosc2.Codec.ZSTD,
    "clevel": 1,
    "filters": [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA],
    # BYTEDELTA's meta is the type size it undoes the shuffle for
    "filters_meta": [0, 2],
    "nthreads": 1,
}


# The form (meddap.records) of `dataset.json`
_SHARD = {"name": str, "samples": int, "bytes": int, "sha256": str, "index_sha256": str}
_SPLIT = {"shards": [_SHARD], "samples": int, "series": int, "subjects": int}
_DATASET = {
    "digest": str,
    "splits": {...: _SPLIT},
    "statistics": dict,
    "labels": dict,
    "ignore": [int],
    "channels": {...: int},
    "classes": dict,
    "made_with": dict,
}
# The form of a sample's .json as far as it is read without its pixels
_RECORD = {"subject": str, "series": str, "order": int, "position": float, "labels": dict}
# The form of NAME.weights.json
WEIGHTS = {"digest": str, "split": str, "made_with": dict}
# The form of its entry `shares`, which may be missing: attribute → word → share of the samples, share of the draws
SHARES = {...: {...: [float]}}
MOST_WEIGHT = 1000.0  # times the mean
_WEIGH_AGAIN = "make the weights again, or leave them out"
AGAIN = "copy it again, or make it again with data_prep/shard_ct.py or shard_mri.py"
# What decoding a damaged sample raises
UNDECODABLE = (MeddapError, ValueError, KeyError, TypeError, IndexError, RuntimeError, MemoryError, OverflowError)


class SchemaError(MeddapError, ValueError):
    """A file of a data set that does not hold what this version of the schema says; one line that names it."""


@dataclass(frozen=True)
class Slice:
    """One axial slice, one sample of a shard.

    pixels     (S·C, H, W) int16 HU for CT, uint16 for MRI and pictures; rows anterior→posterior, columns patient
               right→left. The C channels of a sequence follow each other
    sequences  names of the S sequences, e.g. ("ct",)
    spacing    (row, column) in mm
    position   mm along the slice axis, inferior→superior
    subject    salted hash of the patient, 32 hexadecimal digits
    series     salted hash of the series, 32 hexadecimal digits
    order      place in its series, 0 at the inferior end
    key        name of the sample, unique in the data set, without a dot
    box        foreground (row0, row1, column0, column1), half open
    labelmap   (H, W) uint8, 0 is background; None if the series has no label map
    annotated  label values annotated somewhere in the series (a value missing here is unlabelled,
               not absent)
    labels     class labels: column → number of its class in `dataset.json`; an unlabelled column is missing
    scales     for MRI the (slope, intercept) of each sequence: signal = pixel · slope + intercept; () for CT
    meta       whitelisted header fields
    channels   C: 1 grey, 3 red, green and blue on one scale
    """

    pixels: np.ndarray
    sequences: tuple[str, ...]
    spacing: tuple[float, float]
    position: float
    subject: str
    series: str
    order: int
    key: str
    box: tuple[int, int, int, int]
    labelmap: np.ndarray | None = None
    annotated: tuple[int, ...] = ()
    labels: dict[str, float] = field(default_factory=dict)
    scales: tuple[tuple[float, float], ...] = ()
    meta: dict[str, object] = field(default_factory=dict)
    channels: int = 1

    @property
    def planes(self) -> np.ndarray:
        """The pixels as (S, C, H, W)."""
        return self.pixels.reshape(len(self.sequences), self.channels, *self.pixels.shape[1:])


def compress(array: np.ndarray) -> bytes:
    """Return the lossless Blosc2 buffer of an array of 1- or 2-byte integers."""
    array = np.ascontiguousarray(array)
    codec: dict[str, Any] = dict(_CODEC)
    if array.dtype.itemsize == 1:
        codec |= {"filters": [blosc2.Filter.NOFILTER], "filters_meta": [0]}
    return blosc2.compress2(array, typesize=array.dtype.itemsize, **codec)


def decompress_into(buffer: bytes | memoryview, out: np.ndarray) -> None:
    """Decode a Blosc2 buffer into `out` (C-contiguous). Raises SchemaError if the sizes differ."""
    size = blosc2.get_cbuffer_sizes(buffer)[0]
    if size != out.nbytes:
        raise SchemaError(f"payload holds {size} bytes, expected {out.nbytes} for {out.shape} {out.dtype}")
    blosc2.decompress2(buffer, dst=out)


def signed(pixels: np.ndarray) -> np.ndarray:
    """Convert stored pixels to int16 in place: HU stay as they are, uint16 lose 32,768, so that both fit one array."""
    if pixels.dtype == np.int16:
        return pixels
    shifted = pixels.view(np.int16)
    shifted ^= _SIGN
    return shifted


def span(sequence: str, window: tuple[float, float]) -> tuple[float, float]:
    """Return the `signed` values that become 0 and 1: `window`, in HU, for CT; the percentiles for an MR sequence."""
    if sequence == CT:
        low, high = window
        return low, high
    return MR_LOW - 32768.0, MR_HIGH - 32768.0


def _json_bytes(record: dict) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def encode(sample: Slice) -> list[tuple[str, bytes]]:
    """Return the members (name, payload) of a sample in the order of the tar.

    Raises SchemaError for a key with a dot or an array of the wrong shape or type.
    """
    if not KEY.fullmatch(sample.key):
        raise SchemaError(f"key {sample.key!r}: only digits, lower-case letters, '_' and '-' are allowed")
    count, height, width = sample.pixels.shape
    wanted = len(sample.sequences) * sample.channels
    if sample.channels not in CHANNELS or count != wanted or sample.pixels.dtype not in (np.int16, np.uint16):
        raise SchemaError(
            f"{sample.key}: pixels are {sample.pixels.shape} {sample.pixels.dtype} of {sample.channels} channels, "
            f"expected ({wanted}, H, W) int16 or uint16 of 1 or 3"
        )
    members = [(f"{sample.key}.{name}.b2", compress(planes)) for name, planes in zip(sample.sequences, sample.planes)]
    if sample.labelmap is not None:
        if sample.labelmap.shape != (height, width) or sample.labelmap.dtype != np.uint8:
            raise SchemaError(
                f"{sample.key}: label map is {sample.labelmap.shape} {sample.labelmap.dtype}, "
                f"expected {(height, width)} uint8"
            )
        members.append((f"{sample.key}.seg.b2", compress(sample.labelmap)))
    record = {
        "schema": VERSION,
        "shape": [height, width],
        "dtype": sample.pixels.dtype.name,
        "sequences": list(sample.sequences),
        "spacing": [float(value) for value in sample.spacing],
        "position": float(sample.position),
        "subject": sample.subject,
        "series": sample.series,
        "order": int(sample.order),
        "box": [int(value) for value in sample.box],
        "annotated": [int(value) for value in sample.annotated],
        "labels": sample.labels,
        "meta": sample.meta,
    }
    if sample.channels > 1:
        record["channels"] = sample.channels
    if sample.scales:
        record["scales"] = [[float(value) for value in scale] for scale in sample.scales]
    members.append((f"{sample.key}.json", _json_bytes(record)))
    return members


def _tar_header() -> tuple[bytes, int]:
    """Return the header of a member without name and size, and the sum of its bytes without those fields."""
    info = tarfile.TarInfo()
    info.mode = 0o644
    header = info.tobuf(format=tarfile.USTAR_FORMAT)
    return header, sum(header) - sum(header[124:135]) - sum(header[148:156]) + 8 * ord(" ")


_TAR_HEADER, _TAR_SUM = _tar_header()


def tar_block(name: str, payload: bytes) -> bytes:
    """Return one member as bytes of the tar: USTAR header with mtime 0, payload, padding to 512 bytes."""
    raw, size = name.encode("ascii"), b"%011o" % len(payload)
    if len(raw) > 100 or len(size) > 11:
        raise SchemaError(f"{name}: {len(payload)} bytes do not fit a tar member with a name of up to 100 letters")
    header = bytearray(_TAR_HEADER)  # tarfile's own takes ten times as long
    header[: len(raw)] = raw
    header[124:135] = size
    header[148:156] = b"%06o\0 " % (_TAR_SUM + sum(raw) + sum(size))
    return b"".join((header, payload, bytes(-len(payload) % tarfile.BLOCKSIZE)))


TAR_END = bytes(2 * tarfile.BLOCKSIZE)


def members(block: bytes | memoryview) -> dict[str, memoryview]:
    """Return extensions (`ct.b2`, `seg.b2`, `json`) and payloads of one sample's block of a tar, its key as `__key__`.

    Raises SchemaError for a block that is cut, mixes keys or is not USTAR.
    """
    view, payloads, at = memoryview(block), {}, 0
    key: str | None = None
    while at < len(view):
        header = bytes(view[at : at + tarfile.BLOCKSIZE])
        if len(header) < tarfile.BLOCKSIZE or header[257:262] != b"ustar":
            raise SchemaError(f"no tar header at byte {at} of the sample")
        name = header[:100].rstrip(b"\0").decode()
        size = int(header[124:135], 8)
        stem, _, extension = name.partition(".")
        if not KEY.fullmatch(stem):
            raise SchemaError(f"member {name[:60]!r} is not a file of a sample")
        if key not in (None, stem):
            raise SchemaError(f"members of {key} and {stem} in one sample")
        key, start = stem, at + tarfile.BLOCKSIZE
        if start + size > len(view):
            raise SchemaError(f"{name} is cut short")
        payloads[extension] = view[start : start + size]
        at = start + size + -size % tarfile.BLOCKSIZE
    return {"__key__": memoryview((key or "").encode()), **payloads}


def decode(block: bytes | memoryview) -> Slice:
    """Return the sample in one block of a tar. Raises SchemaError for another version or a block without its .json."""
    payloads = members(block)
    key = bytes(payloads["__key__"]).decode()
    if "json" not in payloads:
        raise SchemaError(f"sample {key} has no .json")
    record = json.loads(bytes(payloads["json"]))
    if record["schema"] != VERSION:
        raise SchemaError(f"sample of schema {record['schema']}, this version reads {VERSION}; shard it again")
    height, width = record["shape"]
    channels = channels_in(record)
    pixels = np.empty((len(record["sequences"]), channels, height, width), record["dtype"])
    for planes, name in zip(pixels, record["sequences"]):
        decompress_into(payloads[f"{name}.b2"], planes)
    labelmap = None
    if "seg.b2" in payloads:
        labelmap = np.empty((height, width), np.uint8)
        decompress_into(payloads["seg.b2"], labelmap)
    return Slice(
        pixels=pixels.reshape(-1, height, width),
        sequences=tuple(record["sequences"]),
        spacing=tuple(record["spacing"]),
        position=record["position"],
        subject=record["subject"],
        series=record["series"],
        order=record["order"],
        key=key,
        box=tuple(record["box"]),
        labelmap=labelmap,
        annotated=tuple(record["annotated"]),
        labels=record["labels"],
        scales=tuple(tuple(scale) for scale in record.get("scales", ())),
        meta=record["meta"],
        channels=channels,
    )


def channels_in(record: dict[str, Any]) -> int:
    """Return how many channels the sequences of a sample have, by its .json. Raises SchemaError for another number."""
    channels = record.get("channels", 1)
    if channels not in CHANNELS:
        raise SchemaError(f"{channels!r} channels; 1 and 3 are read")
    return int(channels)


def grey(colours: np.ndarray) -> np.ndarray:
    """Return (H, W) luma by ITU-R BT.601 of (3, H, W) uint8 or uint16, rounded, in the same type."""
    weighted = np.tensordot(np.array([19595, 38470, 7471], np.uint32), colours.astype(np.uint32), 1)
    return ((weighted + 32768) >> 16).astype(colours.dtype)  # the weights are 65536ths, of which they sum to 1


def short_hash(digest: str) -> int:
    """Return the first eight bytes of a hexadecimal digest, which the index keeps."""
    return int(digest[:16], 16)


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def content_digest(pixels: np.ndarray) -> int:
    """Return eight bytes that are equal for slices with the same pixels, whatever patient they are attributed to.

    SHA-256 over shape, type and values of (S, H, W) pixels; with 256 rows or more over every fourth row, which
    distinguishes real images in a quarter of the time.
    """
    pixels = np.ascontiguousarray(pixels[:, :: 4 if pixels.shape[1] >= 256 else 1])
    little = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.name}".encode())
    digest.update(memoryview(little).cast("B"))  # type: ignore[arg-type] # NumPy 1 has no __buffer__ for mypy
    return int.from_bytes(digest.digest()[:8], "big")


def allow_open_files(count: int) -> None:
    """Let this process keep `count` shards open. Raises SchemaError if the system does not allow it.

    Many systems allow 1,024 files by default and more to a process that asks.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + _OTHER_FILES:
        raise SchemaError(f"{count} shards, but only {hard} files may be open; raise `ulimit -n` or samples_per_shard")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Split:
    """The samples of one split of a finished data set, read by index from any thread.

    index   (N,) INDEX_DTYPE, shards in the order of `dataset.json`
    shard   (N,) uint32, number of the shard that holds each sample
    """

    def __init__(self, root: str | os.PathLike, name: str) -> None:
        self.root, self.name = Path(root), name
        self.dataset = read_dataset(root)
        if name not in self.dataset["splits"]:
            raise SchemaError(f"{root}: no split {name!r}; it has {', '.join(self.dataset['splits'])}")
        rows = self.dataset["splits"][name]["shards"]
        self.paths = [self.root / row["name"] for row in rows]
        ends = np.cumsum([row["samples"] for row in rows], dtype=np.int64)
        self.index = np.empty(ends[-1] if rows else 0, INDEX_DTYPE)
        self.shard = np.empty(len(self.index), np.uint32)
        for number, (path, row, end) in enumerate(zip(self.paths, rows, ends)):
            self.index[end - row["samples"] : end] = self._read_index(path, row)
            self.shard[end - row["samples"] : end] = number
        allow_open_files(len(rows))
        self._files: dict[int, int] = {}

    @staticmethod
    def _read_index(path: Path, row: dict) -> np.ndarray:
        index = read_array(index_of(path), INDEX_DTYPE)
        if len(index) != row["samples"]:
            raise SchemaError(f"{index_of(path)}: {len(index)} rows, dataset.json says {row['samples']}; {AGAIN}")
        return index

    def content(self) -> np.ndarray | None:
        """Return (N,) uint64 digests of the pixels; None for a data set made before digests were written."""
        files = [content_of(path) for path in self.paths]
        if not all(path.is_file() for path in files):
            return None
        return np.concatenate([np.empty(0, np.uint64), *(read_array(path, np.uint64) for path in files)])

    def __len__(self) -> int:
        return len(self.index)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def read(self, number: int, into: memoryview | None = None) -> bytes | memoryview:
        """Return the bytes of sample `number` as they lie in its shard; at the start of `into` if that is given.

        Reusing a buffer spares the system the pages of a new one, which cost more than the copy.
        Raises SchemaError for a shard that is missing, too short or cannot be read.
        """
        shard, row = int(self.shard[number]), self.index[number]
        offset, size = int(row["offset"]), int(row["size"])
        descriptor = self._files.get(shard)
        block: bytes | memoryview
        try:
            if descriptor is None:
                opened = os.open(self.paths[shard], os.O_RDONLY)
                descriptor = self._files.setdefault(shard, opened)
                if descriptor != opened:  # another thread was faster
                    os.close(opened)
            if into is None:
                block = os.pread(descriptor, size, offset)
            else:
                block = into[:size]
                block = block[: os.preadv(descriptor, [block], offset)]
        except OSError as error:
            raise SchemaError(f"{self.paths[shard]}: {error.strerror}; {AGAIN}") from error
        if len(block) != size:
            raise SchemaError(f"{self.paths[shard]}: ends at sample {number}; the shard is truncated, make it again")
        return block

    def record(self, number: int) -> dict[str, Any]:
        """Return the JSON of sample `number`, and its `key`, without decoding its pixels. Raises SchemaError."""
        try:
            payloads = members(self.read(number))
            record = json.loads(bytes(payloads["json"]))
            if problem := misfit(record, _RECORD):
                raise SchemaError(problem)
            return {**record, "key": bytes(payloads["__key__"]).decode()}
        except UNDECODABLE as error:
            raise self._named(number, error) from error

    def labels(self, number: int) -> dict[str, float]:
        """Return the class labels of sample `number` without decoding its pixels. Raises SchemaError."""
        return self.record(number)["labels"]

    def __getitem__(self, number: int) -> Slice:
        try:
            return decode(self.read(number))
        except UNDECODABLE as error:
            raise self._named(number, error) from error

    def _named(self, number: int, error: Exception) -> SchemaError:
        return SchemaError(f"{self.paths[int(self.shard[number])]}: sample {number}: {error}")


def index_of(shard: Path) -> Path:
    """Return the path of the index beside a shard."""
    return shard.with_suffix(".index.npy")


def content_of(shard: Path) -> Path:
    """Return the path of the pixel digests beside a shard."""
    return shard.with_suffix(".content.npy")


def weights_of(root: str | os.PathLike, name: str) -> tuple[Path, Path]:
    """Return the paths of weights `name` of a data set and of what is written about them; an absolute name stays."""
    path = Path(root) / name
    return path.with_name(f"{path.name}.weights.npy"), path.with_name(f"{path.name}.weights.json")


def weights_beside(root: str | os.PathLike) -> list[str]:
    """Return the names of all weights beside the shards of a data set."""
    return sorted(path.name.removesuffix(".weights.json") for path in Path(root).glob("*.weights.json"))


def read_shares(root: str | os.PathLike, name: str) -> tuple[str, dict[str, dict[str, list[float]]]]:
    """Return the split of weights `name`, and attribute → word → [share of the samples, share of the draws].

    The shares are {} where nobody noted them. Raises SchemaError for a file that is damaged.
    """
    about = weights_of(root, name)[1]
    record = read_json(about, WEIGHTS, _WEIGH_AGAIN, SchemaError)
    shares = record.get("shares", {})
    if problem := misfit(shares, SHARES, "shares"):
        raise SchemaError(f"{about}: {problem}; {_WEIGH_AGAIN}")
    if any(len(pair) != 2 for words in shares.values() for pair in words.values()):
        raise SchemaError(f"{about}: shares are not pairs; {_WEIGH_AGAIN}")
    return record["split"], shares


def read_weights(split: Split, name: str) -> np.ndarray:
    """Return the (N,) float32 weights `name` of a split's samples.

    Raises SchemaError for weights that are missing, damaged, of other data, or not finite, negative or all 0.
    """
    path, about = weights_of(split.root, name)
    remedy = _WEIGH_AGAIN
    record = read_json(about, WEIGHTS, remedy, SchemaError)
    for key, now in (("digest", split.dataset["digest"]), ("split", split.name)):
        if record[key] != now:
            raise SchemaError(f"{about}: {key} {record[key][:16]}, but {split.root} has {now[:16]}; {remedy}")
    weights = read_array(path, np.float32, remedy)
    if len(weights) != len(split):
        raise SchemaError(f"{path}: {len(weights)} weights for {len(split)} samples; {remedy}")
    strange = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(strange):
        raise SchemaError(f"{path}: sample {strange[0]} has weight {weights[strange[0]]}; give finite ones from 0 on")
    if not weights.any():
        raise SchemaError(f"{path}: all weights are 0; {remedy}")
    if (most := float(weights.max() / weights.mean(dtype=np.float64))) > MOST_WEIGHT:
        raise SchemaError(f"{path}: a weight of {most:.0f} times the mean; at most {MOST_WEIGHT:g} times are taken")
    return weights


def dataset_digest(splits: dict) -> str:
    """Return the SHA-256 over names and checksums of all shards: the identity of a data set."""
    rows = [[row["name"], row["sha256"]] for name in sorted(splits) for row in splits[name]["shards"]]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_array(path: Path, dtype: np.dtype | type, remedy: str = AGAIN) -> np.ndarray:
    """Return the (N,) array of `dtype` in a .npy file. Raises SchemaError for a file that is missing or damaged."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise SchemaError(f"{path}: {error.strerror or error}; {remedy}") from error
    except Exception as error:  # hostile bytes raise anything
        raise SchemaError(f"{path}: damaged ({type(error).__name__}); {remedy}") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        raise SchemaError(f"{path}: does not hold one row per sample; {remedy}")
    return array


def read_dataset(root: str | os.PathLike) -> dict[str, Any]:
    """Return `dataset.json` of a finished data set. Raises SchemaError if missing, damaged or of another version."""
    path = Path(root) / "dataset.json"
    if not path.is_file():
        raise SchemaError(
            f"{path}: not found; no finished data set there, run data_prep/shard_ct.py, shard_mri.py or shard_images.py"
        )
    dataset = read_json(path, dict, AGAIN, SchemaError)
    if dataset.get("schema") != VERSION:
        raise SchemaError(f"{path}: schema {dataset.get('schema')}, this version reads {VERSION}; shard it again")
    # data sets made before there were class labels, values that mean "not annotated", or colours
    dataset = {"classes": {}, "ignore": [], "channels": {}, **dataset}
    if problem := misfit(dataset, _DATASET):
        raise SchemaError(f"{path}: {problem}; {AGAIN}")
    return dataset


def sequences_of(dataset: dict[str, Any]) -> list[str] | None:
    """Return the names of the sequences of a data set, by `dataset.json`; None where it does not say."""
    found = dataset.get("sequences")
    return list(found) if isinstance(found, dict) and found else None


def channels_of(dataset: dict[str, Any]) -> int:
    """Return the most channels that a sample of a data set has, by `dataset.json`: 3 where some are in colour."""
    return max(dataset["channels"].values(), default=1)


def license_of(dataset: dict[str, Any]) -> str | None:
    """Return the licence that whoever sharded a data set named, or None."""
    found = dataset.get("license")
    return found if isinstance(found, str) and found else None
