"""Examples from our shards with labels from a CSV, by patient, study or slice."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep import identity
from data_prep.schema import SPLITS
from eval.config import TaskConfig
from eval.data import files
from eval.data.examples import Examples, salt, version_of
from eval.data.sources import shards
from meddap.settings import SettingsError

_UNKNOWN = ("", "na", "nan", "n/a", "?")
_COLUMN = {"patient": "subjects", "study": "studies", "slice": "keys"}
_HASHED = {"patient": "patient", "study": "series", "slice": None}


def load(task: TaskConfig, cache: Path) -> Examples:
    """Return the slices that the table has a row for; the others are left out."""
    return attach(shards.load(replace(task, kind="multilabel"), cache), task)


def attach(examples: Examples, task: TaskConfig) -> Examples:
    """Return the examples that the table has a row for, with its labels, sites and splits."""
    if task.table.file is None:
        raise SettingsError("table.file is required; give table.file=LABELS.csv")
    path = Path(task.table.file)
    rows, columns = _read(path, task)
    ids = getattr(examples, _COLUMN[task.table.by])
    places = _matched(path, rows, ids, task)
    known = np.array([each in places for each in ids])
    examples = examples.take(known)
    mine = [rows[places[each]][1] for each in ids[known]]
    names, targets = _targets(path, task, columns, mine, [row for _, row in rows])
    return replace(
        examples,
        version=version_of(examples.digests, targets, examples.version),
        names=names,
        values=(),
        targets=targets,
        sites=_text(mine, task.table.site, examples.sites),
        splits=_splits(path, mine, task, examples.splits),
    )


def columns(task: TaskConfig) -> list[str]:
    """Return the columns of the table but for the one of ids."""
    path = Path(task.table.file or "")
    rows, _ = _read(path, task)
    return [name for name in rows[0][1] if name != task.table.id]


def column(task: TaskConfig, examples: Examples, name: str) -> list[tuple[str, str]]:
    """Return (patient, text) of a column for every example; "" where it is unknown."""
    path = Path(task.table.file or "")
    rows, _ = _read(path, task)
    ids = getattr(examples, _COLUMN[task.table.by])
    places = _matched(path, rows, ids, task)
    found = [rows[places[each]][1][name].strip() if each in places else "" for each in ids]
    known = ["" if text.lower() in _UNKNOWN else text for text in found]
    return list(zip(examples.subjects.tolist(), known))


def _read(path: Path, task: TaskConfig) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Return (line of the file, row) of every row, and the columns that are labels."""
    with files.reading(path, "give table.file=LABELS.csv"), open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            head = list(reader.fieldnames or [])
            rows = [(reader.line_num, row) for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise SettingsError(f"{path}: not a CSV in UTF-8 ({error})") from error
    wanted = task.table.labels or [
        name for name in head if name not in (task.table.id, task.table.site, task.table.split, *task.subgroups)
    ]
    if missing := [name for name in (task.table.id, *wanted) if name not in head]:
        raise SettingsError(f"{path}: has no column {missing[0]!r}; it has {', '.join(head) or 'none'}")
    if not rows or not wanted:
        raise SettingsError(f"{path}: has no {'rows' if not rows else 'column of labels'}")
    if short := [line for line, row in rows if None in row.values() or None in row]:
        raise SettingsError(f"{path}: line {short[0]} does not have the columns of the first line")
    return rows, wanted


def _matched(path: Path, rows: list, ids: np.ndarray, task: TaskConfig) -> dict[str, int]:
    """Return the place of the row of each id in the shards. The table may have these ids, or the original ones where
    the salt is set.

    Errors name lines of the file, never an id: that may be a patient's name.
    """
    there, secret = set(ids.tolist()), salt()
    places: dict[str, int] = {}
    unknown: list[int] = []
    for place, (line, row) in enumerate(rows):
        given = row[task.table.id].strip()
        kind = _HASHED[task.table.by]
        if given not in there and secret is not None and kind is not None:
            given = identity.hashed(secret, kind, given)
        if given not in there:
            unknown.append(line)
        elif given in places:
            raise SettingsError(f"{path}: lines {rows[places[given]][0]} and {line} name the same {task.table.by}")
        else:
            places[given] = place
    if unknown:
        hint = "" if secret is not None else f"; set {identity.VARIABLE} to the salt of the shards if ids are original"
        raise SettingsError(
            f"{path}: {len(unknown)} of {len(rows)} rows name no {task.table.by} of {task.data}, "
            f"the first in line {unknown[0]}{hint}"
        )
    return places


def _targets(
    path: Path, task: TaskConfig, columns: list[str], mine: list[dict[str, str]], every: list[dict[str, str]]
) -> tuple[tuple[str, ...], np.ndarray]:
    single = {"binary", "multiclass", "retrieval", "anomaly"}
    if task.kind in single and len(columns) != 1:
        raise SettingsError(f"{path}: kind={task.kind} takes one column of labels, not {', '.join(columns)}")
    if task.kind == "survival" and len(columns) != 2:
        raise SettingsError(f"{path}: kind=survival takes two columns, time and event, not {', '.join(columns)}")
    if task.kind == "segmentation":
        raise SettingsError("kind=segmentation needs label maps; take source=shards or source=nnunet")
    if task.kind in single:
        return _classes(path, task, columns[0], mine, every)
    return tuple(columns), np.array([[_number(path, row[name], name) for name in columns] for row in mine])


def _classes(path: Path, task: TaskConfig, column: str, mine: list, every: list) -> tuple[tuple[str, ...], np.ndarray]:
    words = [row[column].strip() for row in mine]
    names = sorted({row[column].strip() for row in every} - {"", *(w for w in _UNKNOWN)})
    if len(names) < 2:
        raise SettingsError(f"{path}: column {column!r} has one class only; a probe needs two")
    if task.kind in ("multiclass", "retrieval"):
        numbers = [[names.index(word) if word in names else np.nan] for word in words]
        return tuple(names), np.array(numbers, np.float64)
    if len(names) > 2 and not task.positive:
        raise SettingsError(f"{path}: column {column!r} has {len(names)} classes; say which are 1: positive=[…]")
    positive = task.positive or names[1:]
    return (column,), np.array([[float(word in positive) if word in names else np.nan] for word in words])


def _number(path: Path, word: str, column: str) -> float:
    if word.strip().lower() in _UNKNOWN:
        return float("nan")
    try:
        return float(word)
    except ValueError:
        raise SettingsError(f"{path}: column {column!r} holds {word!r}, which is not a number") from None


def _text(mine: list[dict[str, str]], column: str, otherwise: np.ndarray) -> np.ndarray:
    return np.array([row[column].strip() for row in mine]) if mine and column in mine[0] else otherwise


def _splits(path: Path, mine: list[dict[str, str]], task: TaskConfig, otherwise: np.ndarray) -> np.ndarray:
    splits = _text(mine, task.table.split, otherwise)
    if strange := sorted(set(splits.tolist()) - {*SPLITS, ""}):
        raise SettingsError(f"{path}: column {task.table.split!r} holds {strange[0]!r}; use {', '.join(SPLITS)}")
    return splits
