"""The examples of a task: what every source of data yields and every probe works on.

An example is always one slice (or one flat image); a task of level `volume` groups slices by `studies`.
Columns are read once and kept; pixels are read again whenever `read` is called, so that nothing large stays in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from data_prep import identity
from meddap.settings import SettingsError

Scale = Literal["hu", "unit8", "mr16"]


@dataclass(frozen=True)
class Picture:
    """The pixels of one example.

    pixels     (S·C, H, W) of the S sequences that are there: int16 HU, uint8 or uint16 (see `scale`)
    sequences  their names, e.g. ("ct",), ("t1", "flair"), ("image",)
    scale      how stored values become 0…1: `hu` by the encoder's window; `unit8` by 255; `mr16` by the schema's
               fixed places of the 0.5th and 99.5th percentile
    spacing    (row, column) in mm, (1, 1) where unknown
    box        foreground (row0, row1, column0, column1), half open
    labelmap   (H, W) uint8, 0 is background; None where there is none
    channels   C: 1 grey, 3 red, green and blue
    """

    pixels: np.ndarray
    sequences: tuple[str, ...]
    scale: Scale
    box: tuple[int, int, int, int]
    spacing: tuple[float, float] = (1.0, 1.0)
    labelmap: np.ndarray | None = None
    channels: int = 1

    def only(self, places: Sequence[int]) -> Picture:
        """Return the picture with some of its sequences alone."""
        planes = [place * self.channels + channel for place in places for channel in range(self.channels)]
        return replace(self, pixels=self.pixels[planes], sequences=tuple(self.sequences[place] for place in places))


@dataclass(frozen=True)
class Examples:
    """N examples as columns.

    names      of the T labels (multi-label, regression), the classes (multi-class, retrieval) or the structures
               (segmentation)
    values     label value of each structure in label maps; () for other kinds
    ignored    label values of pixels that nobody annotated: neither a structure nor background
    keys       (N,) unique names of the examples
    subjects   (N,) the patient: a salted hash, or a number where nobody gave ids; never a name
    studies    (N,) the volume that a slice belongs to
    sites      (N,) hospital or scanner, "" where unknown
    splits     (N,) train, val or test where the data say so, else ""
    orders     (N,) place in the volume; positions (N,) mm along its axis
    digests    (N,) uint64 digest of the pixels (data_prep.schema.content_digest)
    targets    (N, T) float64, NaN where unknown. binary, anomaly: (N, 1) 0 or 1. multiclass, retrieval: (N, 1) number
               of the class. multilabel: (N, T) 0 or 1. regression: (N, T). survival: (N, 2) time, event (1 happened,
               0 censored). segmentation: (N, O) whether the slice holds the structure.
    annotated  (N, O) bool, segmentation only: the structure is labelled somewhere in this volume (a structure that is
               not is unlabelled, not absent); else (N, 0)
    reader     number → Picture
    version    hash of the data and their labels: another one, other label maps
    """

    names: tuple[str, ...]
    keys: np.ndarray
    subjects: np.ndarray
    studies: np.ndarray
    sites: np.ndarray
    splits: np.ndarray
    orders: np.ndarray
    positions: np.ndarray
    digests: np.ndarray
    targets: np.ndarray
    annotated: np.ndarray
    reader: Callable[[int], Picture]
    version: str
    values: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, number: int) -> Picture:
        """Return the pixels of example `number`."""
        return self.reader(int(number))

    def take(self, rows: np.ndarray) -> Examples:
        """Return the examples `rows` (numbers or a mask), in that order."""
        rows = np.arange(len(self))[rows]
        columns = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        reader = self.reader
        return replace(self, **columns, reader=lambda number: reader(int(rows[number])))


def flat(
    keys: np.ndarray,
    targets: np.ndarray,
    digests: Sequence[int] | np.ndarray,
    reader: Callable[[int], Picture],
    **columns: Any,
) -> Examples:
    """Return examples of images that stand alone, each its own patient, study and volume.

    columns  fields of Examples by name: `names`, and whatever else the source knows, in place of these
    """
    count, made = len(keys), np.array(digests, np.uint64)
    alone = {
        **{"subjects": keys, "studies": keys, "sites": np.full(count, ""), "splits": np.full(count, "")},
        **{"orders": np.zeros(count, np.int64), "positions": np.zeros(count)},
    }
    return Examples(
        keys=keys,
        targets=targets,
        digests=made,
        reader=reader,
        annotated=np.zeros((count, 0), bool),
        version=version_of(made, targets),
        **{**alone, **columns},
    )


def salt() -> bytes | None:
    """Return the user's salt from the environment, or None."""
    return identity.read_salt(None) if os.environ.get(identity.VARIABLE) else None


def identified(names: Sequence[str], kind: str) -> np.ndarray:
    """Return (N,) ids of names, which may be those of patients and are never kept.

    kind  patient, series or source: where the salt is known, the ids are the hashes that data_prep makes of these.
    Else they are the places of the names in their order, which say nothing and are the same in every run on the same
    data.
    """
    secret = salt()
    if secret is None:
        return np.unique(np.array(names), return_inverse=True)[1].astype("U10")
    hashes = {name: identity.hashed(secret, kind, name) for name in set(names)}
    return np.array([hashes[name] for name in names])


def matched(names: Sequence[str], pattern: str, key: str) -> list[str]:
    """Return what `pattern` (a regular expression) matches of each name: its group, where it has one.

    key  of the configuration, for the SettingsError where a name does not match
    """
    found = []
    for name in names:
        match = re.search(pattern, name)
        value = match.group(1 if match.re.groups else 0) if match else None
        if not value:
            raise SettingsError(f"{key}={pattern!r}: {'names nobody in' if match else 'does not match'} {name!r}")
        found.append(value)
    return found


def version_of(digests: np.ndarray, targets: np.ndarray, *more: object) -> str:
    """Return a hash for `Examples.version` where a data set has none of its own."""
    digest = hashlib.sha256(np.ascontiguousarray(digests).tobytes() + np.ascontiguousarray(targets).tobytes())
    digest.update(repr(more).encode())
    return digest.hexdigest()


def states(targets: np.ndarray, kind: str, classes: int) -> np.ndarray:
    """Return targets as (N, O) int8 in {1, 0, −1 unknown}: a column per class (multiclass, retrieval) or label."""
    unknown = np.isnan(targets)
    if kind in ("multiclass", "retrieval"):
        one_hot = (targets == np.arange(classes)).astype(np.int8)
        return np.where(unknown, -1, one_hot).astype(np.int8)
    return np.where(unknown, -1, np.nan_to_num(targets) > 0).astype(np.int8)


def ends(names: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return (G + 1,) where each run of equal names begins, and the end of the last one."""
    column = np.asarray(names)
    changes = np.flatnonzero(column[1:] != column[:-1]) + 1
    return np.concatenate([[0], changes, [len(column)]])
