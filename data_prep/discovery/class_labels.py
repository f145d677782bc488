"""Class labels of patients or studies, from a CSV that the user keeps.

    patient,study,tumour,grade
    p-0012,,astrocytoma,4

The header names a column `patient`, `study` or both; every other column is a label with named classes, an empty cell
is unlabelled. A row with a study counts for that study, one without for all studies of the patient. Only column and
class names go into a data set, never the ids. Errors name lines, never their content.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from data_prep.discovery.archive import Source
from meddap.settings import SettingsError

_KEYS = {
    **dict.fromkeys(("patient", "patient_id", "patientid", "subject", "participant_id"), "patient"),
    **dict.fromkeys(("study", "study_id", "session", "session_id", "studyinstanceuid"), "study"),
}
_COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9 _-]{0,31}")  # no dot: heads of a model bear these names
_CLASS = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/+-]{0,31}")
_MOST = 100  # classes of one column
_FEW = 8  # from so many lines on, a column without repetitions is not a class


@dataclass(frozen=True)
class Labels:
    """The labels of a CSV.

    names  column → its classes; a class is stored as its place here
    rows   (patient, study), "" if the CSV does not say → column → class
    lines  the same keys → line of the file, for errors
    """

    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rows: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    lines: dict[tuple[str, str], int] = field(default_factory=dict)

    def keys_of(self, source: Source) -> list[tuple[str, str]]:
        """Return the keys of the rows that concern a source, those of its patient first."""
        patients, studies = _names(source.patient), _names(source.study.partition(":")[2] or source.study)
        wanted = [(patient, "") for patient in patients]
        wanted += [(patient, study) for study in studies for patient in ["", *patients]]
        return [key for key in wanted if key in self.rows]

    def of(self, source: Source) -> dict[str, int]:
        """Return column → class of a source; a row of its study overrides one of its patient."""
        classes = {column: self.names[column].index(name) for column, name in source.classes}
        for key in self.keys_of(source):
            classes |= self.rows[key]
        return classes

    def check_known(self, file: Path, sources: Iterable[Source]) -> None:
        """Raise SettingsError if a row concerns no source: a slip would lose labels silently."""
        left = set(self.rows)
        for source in sources:
            left.difference_update(self.keys_of(source))
        if left:
            lines = sorted(self.lines[key] for key in left)
            more = f", nor do {len(lines) - 1} others" if len(lines) > 1 else ""
            raise SettingsError(
                f"{file}: line {lines[0]} names no patient or study of the input{more}; correct it, or set "
                "unknown_labels=ignore"
            )


def with_own(labels: Labels, sources: Iterable[Source]) -> Labels:
    """Return labels with the classes that sources have of their own. Raises SettingsError.

    They may not bear the name of a column of the CSV, and folders of too many names are no classes: they might be
    patients.
    """
    values: dict[str, list[str]] = {}
    for source in sources:
        for column, name in source.classes:
            values.setdefault(column, []).append(name)
    if both := sorted(set(values) & set(labels.names)):
        raise SettingsError(f"{both[0]}: a column of --labels, and of the data; leave it out with label_columns")
    own = {}
    for column, names in values.items():
        if strange := [name for name in names if not _CLASS.fullmatch(name)]:
            raise SettingsError(f"{column}: {strange[0]!r} is no class: 1 to 32 letters, digits, blanks or ._/+-")
        own[column] = _sorted(set(names))
        if len(own[column]) < 2 or _too_many(own[column], names):
            raise SettingsError(
                f"{column}: {len(own[column])} classes of {len(names)} pictures; are the folders classes? "
                "class_from=none reads them without"
            )
    return replace(labels, names={**labels.names, **own})


def _names(name: str) -> list[str]:
    """Return the spellings of a patient or study: whole, its last part, BIDS names without sub- or ses-."""
    names = [name, PurePath(name).name] if name else []
    names += [short.partition("-")[2] for short in names if short.startswith(("sub-", "ses-"))]
    return list(dict.fromkeys(names))


def read(file: Path, columns: Sequence[str] = ()) -> Labels:
    """Read the labels of a CSV (comma, semicolon or tab), of `columns` or of all. Raises SettingsError, one line."""
    header, lines = _lines(file)
    keys, wanted = _header(file, header, columns)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    numbers: dict[tuple[str, str], int] = {}
    for number, line in lines:
        if len(line) != len(header):
            raise SettingsError(f"{file}: line {number} has {len(line)} fields, its header {len(header)}")
        patient, study = (line[keys[name]] if name in keys else "" for name in ("patient", "study"))
        key = patient, study
        if not any(key):
            raise SettingsError(f"{file}: line {number} names no {' and no '.join(keys)}")
        if key in numbers:
            raise SettingsError(f"{file}: lines {numbers[key]} and {number} name the same {' and '.join(keys)}")
        numbers[key] = number
        cells[key] = {name: line[place] for name, place in wanted.items() if line[place]}
        for name, value in cells[key].items():
            if not _CLASS.fullmatch(value):
                raise SettingsError(
                    f"{file}: line {number}, column {name}: a class is 1 to 32 letters, digits, blanks or ._/+-"
                )
    names = {name: _classes(file, name, [row[name] for row in cells.values() if name in row]) for name in wanted}
    places = {name: {value: place for place, value in enumerate(values)} for name, values in names.items()}
    rows = {key: {name: places[name][value] for name, value in row.items()} for key, row in cells.items()}
    return Labels(names, rows, numbers)


def _lines(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and every other line with its number; cells are stripped, empty lines left out."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; name the CSV of the labels") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: not valid UTF-8; save the table as CSV in UTF-8") from error
    first = text.partition("\n")[0]
    reader = csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise SettingsError(f"{file}: line {reader.line_num} is not valid CSV ({error})") from error
    rows = [row for row in rows if any(row[1])]
    if len(rows) < 2:
        raise SettingsError(f"{file}: holds no labels; its first line names the columns, each other a patient or study")
    return rows[0][1], rows[1:]


def _header(file: Path, header: list[str], columns: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the places of the key columns and of the label columns."""
    keys: dict[str, int] = {}
    others: dict[str, int] = {}
    for place, name in enumerate(header):
        key = _KEYS.get(name.lower())
        into, name = (keys, key) if key else (others, name)
        if name in into:
            raise SettingsError(f"{file}: two columns are called {name}; each may come once")
        into[name] = place
    if not keys:
        raise SettingsError(f"{file}: no column is called patient or study; it has {', '.join(header)[:200]}")
    if missing := [name for name in columns if name not in others]:
        raise SettingsError(f"{file}: no column {missing[0]}; it has {', '.join(others)[:200]}")
    wanted = {name: others[name] for name in columns or others}
    if not wanted:
        raise SettingsError(f"{file}: no column beside {' and '.join(keys)}, so no label")
    if strange := [name for name in wanted if not _COLUMN.fullmatch(name)]:
        raise SettingsError(f"{file}: column {strange[0]!r}: a name is 1 to 32 letters, digits, blanks, _ or -")
    return keys, wanted


def _classes(file: Path, column: str, values: list[str]) -> tuple[str, ...]:
    """Return the sorted classes of a column: numbers by value, names alphabetically."""
    classes = set(values)
    if len(classes) < 2:
        raise SettingsError(f"{file}: column {column} has {len(classes)} classes; leave it out with label_columns")
    if _too_many(classes, values):
        raise SettingsError(
            f"{file}: column {column} has {len(classes)} different values in {len(values)} lines, too many for "
            "a label; name the columns that are labels: label_columns=[…]"
        )
    return _sorted(classes)


def _too_many(classes: Collection[str], values: Sequence[str]) -> bool:
    """Return whether so many different values are rather names than classes."""
    return len(classes) > _MOST or (len(values) >= _FEW and len(classes) > len(values) / 2)


def _sorted(classes: Iterable[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(classes, key=float))
    except ValueError:
        return tuple(sorted(classes))
