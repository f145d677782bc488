"""What the miniatures of public collections are made of: small volumes, label maps on them, and what must come out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (26, 24, 18)  # (I, J, K): more voxels than the evidence for HU needs
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])
ORGANS = 2  # drawn in each volume, and in the label maps
# 99.5th percentile of the signal of the foreground, by which a test knows which file became which sequence
LEVELS = {"t1": 200, "t1c": 400, "t2": 600, "flair": 800, "pd": 1000, "adc": 1200, "mr": 1400, "dwi": 1600}


@dataclass(frozen=True)
class Miniature:
    """A tree that was written, and what must come out of it.

    layout     its name
    patients   with at least one accepted image
    studies    CT volumes or MR studies that are accepted
    sequences  of all studies together
    labelled   studies with a label map
    labels     label value → name
    words      settings that its documentation tells a user to give
    console    what the console says besides, each a part of a line
    plain      whether `layout=none` finds something to read as well
    """

    layout: str
    patients: int
    studies: int
    sequences: tuple[str, ...] = ("ct",)
    labelled: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    console: tuple[str, ...] = ()
    plain: bool = True


Write = Callable[[Path], Miniature]


def organ(place: int, seed: int) -> tuple[slice, slice, slice]:
    """Where the organ with label `place`, 1 or 2, lies in (I, J, K): elsewhere in the next patient."""
    front = 6 + 3 * (seed % 3)
    return slice(2 + 6 * place, 6 + 6 * place), slice(front, front + 6), slice(4, 14)


def ct(seed: int = 0, shift: float = 0) -> np.ndarray:
    """(I, J, K) int16 HU: a body in air whose organs are brighter than the rest; `shift` is added to all."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE).astype(float)
    middle = (np.array(SHAPE) - 1) / 2
    inside = sum(((axis - m) / (m * 0.9)) ** 2 for axis, m in zip(grid[:2], middle)) < 1
    hu = np.where(inside, rng.normal(-20, 40, SHAPE), rng.normal(-1000, 8, SHAPE))
    for place in range(1, ORGANS + 1):
        hu[organ(place, seed)] += 180
    return np.rint(hu + shift).astype(np.int16)


def mr(sequence: str, seed: int = 0) -> np.ndarray:
    """(I, J, K) int16 signal of a skull-stripped head at the level of a sequence; organs are brighter than the rest."""
    rng = np.random.default_rng(seed)
    inside = ct(seed) > -500
    signal = np.where(inside, LEVELS[sequence] * rng.uniform(0.3, 0.6, SHAPE), 0.0)
    for place in range(1, ORGANS + 1):
        signal[organ(place, seed)] = LEVELS[sequence] * rng.uniform(0.97, 1.0, signal[organ(place, seed)].shape)
    return np.rint(signal).astype(np.int16)


def drawn(seed: int, *values: int) -> np.ndarray:
    """(I, J, K) uint8 label map of the organs of the same seed, with these values (default: 1 and 2)."""
    labels = np.zeros(SHAPE, np.uint8)
    for place, value in enumerate(values or range(1, ORGANS + 1), 1):
        labels[organ(place, seed)] = value
    return labels


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write (I, J, K[, channel]) values as NIfTI-1, as scanners' converters do: sform and qform, mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def say(path: Path, content: str | dict = "…\n") -> Path:
    """Write a file that is no image: what comes with collections."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def apple_double(image: Path) -> Path:
    """Write the `._NAME` file that macOS puts beside files in archives."""
    path = image.with_name(f"._{image.name}")
    path.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(120))
    return path
