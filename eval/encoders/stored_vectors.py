"""Vectors that were written before, in place of an encoder: `--checkpoint vectors` with `source: vectors`.

What `meddap embed` writes is read, an .npz or a folder with one per patient, and so are folders of others in which each
file is a patient and holds one array of numbers, as linear probes of challenges (FOMO) ask for.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from meddap.settings import SettingsError

NAME = "vectors"  # of the source, and as --checkpoint has it
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Stored:
    """U vectors: values (U, D) float32; patients, series (U,) names; orders (U,) places of slices in their series."""

    values: np.ndarray
    patients: np.ndarray
    series: np.ndarray
    orders: np.ndarray
    source: str

    @property
    def digest(self) -> str:
        """A hash over the vectors."""
        return hashlib.sha256(np.ascontiguousarray(self.values).tobytes()).hexdigest()


def read(path: str | Path) -> Stored:
    """Return the vectors in an .npz or in all .npz of a folder. Raises SettingsError, one line with file and remedy."""
    place = Path(path)
    found = sorted(place.glob("*.npz")) if place.is_dir() else [place]
    if not found:
        raise SettingsError(f"{place}: holds no .npz; give the folder or file that meddap embed wrote")
    parts = [_read(file) for file in found]
    widths = {part.values.shape[1]: file for part, file in zip(parts, found)}
    if len(widths) > 1:
        (one, file), (other, _) = list(widths.items())[:2]
        raise SettingsError(f"{file}: vectors of {one} numbers, others have {other}; give those of one encoder")
    sources = sorted({part.source for part in parts})
    if len(sources) > 1:
        raise SettingsError(f"{place}: vectors of {' and '.join(sources[:3])}; give those of one encoder")
    columns = ("values", "patients", "series", "orders")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    return Stored(**joined, source=sources[0])


def _read(file: Path) -> Stored:
    try:
        with np.load(file, allow_pickle=False) as packed:
            arrays = {name: packed[name] for name in packed.files}
    except _DAMAGE as error:
        raise SettingsError(f"{file}: cannot be read as an .npz of plain arrays ({type(error).__name__})") from error
    values = _values(file, arrays)
    count = len(values)
    patients, series = (_names(arrays, name, file.stem, count) for name in ("patient", "series"))
    if "series" not in arrays:
        series = patients
    orders = arrays["slice"] if "slice" in arrays else np.arange(count)
    if any(column.shape != (count,) for column in (patients, series, orders)):
        raise SettingsError(f"{file}: {count} vectors, but other numbers of patient, series or slice; write it again")
    return Stored(values, patients, series, np.asarray(orders, np.int64), _source(arrays))


def _values(file: Path, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (n, D) of `vectors`, else of the one array of floats."""
    floats = [name for name, array in arrays.items() if array.dtype.kind == "f"]
    name = "vectors" if "vectors" in arrays else floats[0] if len(floats) == 1 else ""
    if not name:
        raise SettingsError(f"{file}: {len(floats)} arrays of floats and none called vectors; keep one")
    values = np.atleast_2d(np.asarray(arrays[name], np.float32))
    if values.ndim != 2 or not values.size:
        raise SettingsError(f"{file}: {name} of shape {arrays[name].shape}; expected (D,) or (n, D)")
    if not np.isfinite(values).all():
        raise SettingsError(f"{file}: {name} holds NaN or infinite values; write it again")
    return values


def _names(arrays: Mapping[str, np.ndarray], name: str, otherwise: str, count: int) -> np.ndarray:
    return np.asarray(arrays[name], np.str_) if name in arrays else np.full(count, otherwise)


def _source(arrays: Mapping[str, np.ndarray]) -> str:
    """Return what made the vectors, as `meddap embed` notes it."""
    try:
        made = json.loads(str(arrays["made"]))
        return f"vectors of {made['encoder']}"
    except (KeyError, ValueError, TypeError):
        return "vectors of an encoder that is not named"


class StoredVectors:
    """Vectors in the place of an encoder's cls tokens, without patches; see eval.encoders.encoder.FrozenEncoder."""

    patch_size, depth, window = 1, 1, (-1000.0, 1000.0)

    def __init__(self, path: str | Path) -> None:
        self._stored = read(path)
        self.source, self.digest = self._stored.source, self._stored.digest
        self.embed_dim = self._stored.values.shape[1]

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Return (n, D) vectors by their places."""
        return self._stored.values[numbers]

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def features(
        self, images: torch.Tensor, blocks: Sequence[int], present: torch.Tensor | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        raise SettingsError("--checkpoint vectors: vectors were written before; images cannot be turned into more")
