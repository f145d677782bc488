"""Vectors of patients, series or slices as files: an .npz, a Parquet table, or a folder with an .npz per patient.

Written in stretches, so that they need not fit into memory, and under a temporary name until they are whole. The same
vectors give the same bytes.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.data import files
from eval.data.examples import ends
from eval.data.files import FileError
from meddap.disk import flush, temporary_of
from meddap.settings import SettingsError

_ROWS = 4096  # of a Parquet table at a time
PARQUET = ".parquet"


@dataclass(frozen=True)
class Vectors:
    """U vectors, sorted by patient.

    values   (U, D) float32, not yet in memory
    columns  what they are of: `patient` (U,), and for series and slices `series`, for slices `slice`
    made     how they were made, JSON
    """

    values: np.ndarray
    columns: Mapping[str, np.ndarray]
    made: Mapping[str, Any]


def check(output: Path) -> None:
    """Raise SettingsError for the name of a file that cannot be written."""
    if output.suffix not in ("", ".npz", PARQUET):
        raise SettingsError(f"--output {output}: give FILE.npz, FILE{PARQUET} or a folder")
    if output.suffix == PARQUET:
        _arrow()


def write(output: Path, vectors: Vectors) -> None:
    """Write the vectors, whole or not at all; in a folder, each patient whole and `made.json` last."""
    if output.suffix == PARQUET:
        _write_parquet(output, vectors)
    elif output.suffix:
        _write_npz(output, vectors.values, vectors.columns, vectors.made)
    else:
        patients = vectors.columns["patient"]
        starts = ends(patients)
        places = [_file_name(str(patient)) for patient in patients[starts[:-1]]]
        if len(set(places)) < len(places):
            raise SettingsError(f"--output {output}: two patients' ids make one file name; give FILE.npz")
        for place, start, stop in zip(places, starts[:-1], starts[1:]):
            rows = slice(start, stop)
            columns = {name: column[rows] for name, column in vectors.columns.items()}
            _write_npz(output / f"{place}.npz", vectors.values[rows], columns, vectors.made)
        files.write_rows(output / "made.json", [vectors.made])


def made(output: Path) -> dict[str, Any] | None:
    """Return how finished vectors were made; None where there are none. Raises FileError for another file."""
    place = output if output.suffix else output / "made.json"
    if not place.is_file():
        return None
    with files.reading(place, "remove it, or name another --output"):
        if output.suffix == PARQUET:
            text = _arrow().parquet.read_schema(place).metadata[b"made"].decode()
        elif output.suffix:
            with np.load(place, allow_pickle=False) as stored:
                text = str(stored["made"])
        else:
            text = place.read_text()
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("made")
        return found


def _file_name(patient: str) -> str:
    """Return a patient's id as the name of a file."""
    return "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in patient).strip(". ") or "_"


def _write_npz(path: Path, values: np.ndarray, columns: Mapping[str, np.ndarray], made: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in {"vectors": values, **columns, "made": np.array(json.dumps(made))}.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        flush(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _write_parquet(path: Path, vectors: Vectors) -> None:
    arrow = _arrow()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, width = temporary_of(path), vectors.values.shape[1]
    fields = [(name, arrow.int64() if column.dtype.kind == "i" else arrow.string()) for name, column in
              vectors.columns.items()]  # fmt: skip
    schema = arrow.schema([*fields, ("vector", arrow.list_(arrow.float32(), width))])
    schema = schema.with_metadata({"made": json.dumps(vectors.made)})
    try:
        with arrow.parquet.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(vectors.values), _ROWS):
                rows = slice(start, start + _ROWS)
                flat = arrow.array(np.ascontiguousarray(vectors.values[rows]).ravel())
                columns = [arrow.array(column[rows].tolist()) for column in vectors.columns.values()]
                arrays = [*columns, arrow.FixedSizeListArray.from_arrays(flat, width)]
                writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
        flush(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise FileError(f"{PARQUET} files need pyarrow: pip install 'meddap[parquet]', or give FILE.npz") from None
    return pyarrow
