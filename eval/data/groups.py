"""Which subgroup each test patient belongs to (sex, age, scanner …), by the shards' metadata, the table or the site."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_prep.schema import Split, read_dataset
from eval.config import TaskConfig
from eval.data.examples import Examples
from eval.data.files import FileError
from eval.data.sources import table
from meddap.disk import write_atomic
from meddap.records import read_json
from meddap.settings import SettingsError

NAME = "subgroups.json"
SEVERAL = "several"  # a patient whose series have different values
_MOST = 30  # values of an attribute: more of them name patients rather than groups
_SHARDS = ("shards", "table")
Members = dict[str, dict[str, str]]  # attribute → patient → value


def of_patients(task: TaskConfig, examples: Examples, tested: np.ndarray) -> Members:
    """Return the values of `task.subgroups` of the patients in rows `tested`; who has none is left out.

    Raises SettingsError for an attribute that none of them has, or that looks like a name of each patient.
    """
    found: Members = {}
    if not task.subgroups:
        return found
    patients = set(examples.subjects[tested].tolist())
    meta = _metadata(task, patients) if task.source in _SHARDS else {}
    columns = table.columns(task) if task.source in ("table", "vectors") else []
    for name in task.subgroups:
        if name == "site":
            pairs: Iterable[tuple[str, str]] = zip(examples.subjects.tolist(), examples.sites.tolist())
        elif name in columns:
            pairs = table.column(task, examples, name)
        else:
            pairs = meta.get(name, [])
        found[name] = _one_each(pair for pair in pairs if pair[0] in patients)
        if not found[name]:
            known = ", ".join(sorted({"site", *meta, *columns}))
            raise SettingsError(f"subgroups: no test patient has {name!r}; there are {known}")
        values = len(set(found[name].values()))
        if values > _MOST or values > 2 and values > len(found[name]) / 2:
            raise SettingsError(
                f"subgroups: {name!r} has {values} values in {len(found[name])} test patients, too many for groups; "
                "give a column with fewer, e.g. decades instead of ages"
            )
    return found


def write(folder: Path, members: Members) -> None:
    """Write RUN's subgroups.json, patients by their hashes; remove an old one where there are none."""
    if members:
        write_atomic(folder / NAME, (json.dumps(members, indent=1, sort_keys=True) + "\n").encode())
    else:
        (folder / NAME).unlink(missing_ok=True)


def read(folder: Path) -> Members:
    """Return what `write` wrote; empty where nobody asked for subgroups."""
    path = folder / NAME
    return read_json(path, {...: {...: str}}, "probe again", FileError) if path.is_file() else {}


def _one_each(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, set[str]] = {}
    for patient, value in pairs:
        if value:
            values.setdefault(patient, set()).add(value)
    return {patient: next(iter(mine)) if len(mine) == 1 else SEVERAL for patient, mine in values.items()}


def _metadata(task: TaskConfig, wanted: set[str]) -> dict[str, list[tuple[str, str]]]:
    """Return attribute → (patient, value) of every series of the wanted patients; a slice of each is read."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in read_dataset(task.data)["splits"]:
        split = Split(task.data, name)
        for number in np.unique(split.index["series"], return_index=True)[1]:
            sample = split[int(number)]
            if sample.subject in wanted:
                for key, value in sample.meta.items():
                    found.setdefault(key, []).append((sample.subject, _text(value)))
    return found


def _text(value: object) -> str:
    """Return a value as the name of a group; numbers to three digits, so that rounding makes no group."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{float(f'{value:.3g}'):g}" if isinstance(value, float) else str(value)
