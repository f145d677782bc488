"""Warnings: what was decided by default and may well be wrong. `strict=true` makes each an error."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from data_prep import schema
from data_prep.config import SplitConfig
from data_prep.sharding.staging import Record
from meddap.console import say
from meddap.errors import MeddapError

_NOBODY = "no patient in"


class StrictError(MeddapError):
    """Warnings where `strict` allows none."""


@dataclass
class Warnings:
    """The warnings of one start, said as they come, each once. No line holds an id or a name."""

    strict: bool
    lines: list[str] = field(default_factory=list)

    def add(self, lines: Iterable[str]) -> None:
        """Say lines that were not said before. Raises StrictError if there are any and `strict` is set."""
        said = {_what(line) for line in self.lines}
        new = [line for line in dict.fromkeys(lines) if _what(line) not in said]
        for line in new:
            say(f"warning: {line}")
        self.lines += new
        if new and self.strict:
            what = "the warning above is an error" if len(new) == 1 else f"the {len(new)} warnings above are errors"
            raise StrictError(f"strict=true: {what}; do what it names, or leave strict out")


def _what(line: str) -> str:
    """Return what makes a line one that was said before: of a split without patients not how many there were."""
    return line.partition(":")[0] if line.startswith(_NOBODY) else line


def of_split(splits: Mapping[str, str], shares: SplitConfig, own: bool = False) -> list[str]:
    """Return a line for splits that shall have patients but get none.

    splits  hashed patient → split
    own     whether the data name their splits
    """
    return _without(set(splits.values()), len(splits), asdict(shares), own)


def of_counts(counts: Mapping[str, int], shares: Mapping[str, float]) -> list[str]:
    """Return the same line from the number of patients by split."""
    return _without({split for split, count in counts.items() if count}, sum(counts.values()), shares)


def of_records(records: Iterable[Record], shares: SplitConfig, own: bool = False) -> list[str]:
    """Return lines about what staging found.

    Splits whose patients were all left out, images of two patients that are one, label maps that were not used.
    """
    rows: list[dict] = []
    splits: dict[str, str] = {}
    owners: dict[bytes, set[str]] = defaultdict(set)
    copies: Counter[bytes] = Counter()
    for record in records:
        rows += record.rows
        if record.samples:
            splits[record.subject] = record.split
        for content in _contents(record):
            owners[content].add(record.subject)
            copies[content] += 1
    stacks = {row["stack"]: row["notes"] for row in rows if row["status"] == "accepted"}
    reasons = Counter(notes["labels_left_out"] for notes in stacks.values() if "labels_left_out" in notes)
    lines = [f"{count} series without their label map: {reason}" for reason, count in reasons.most_common()]
    if shared := [content for content, subjects in owners.items() if len(subjects) > 1]:
        images = sum(copies[content] for content in shared)
        people = set().union(*(owners[content] for content in shared))
        lines.append(
            f"{images} images of {len(people)} patients are copies of each other, slice by slice: the patients may be "
            "the same; take the copies out, or name their patients alike"
        )
    return [*of_split(splits, shares, own), *lines]


def _contents(record: Record) -> Iterator[bytes]:
    """Yield a digest of the pixels of each image or study, which does not depend on the order of its slices."""
    by_series: dict[str, list[str]] = defaultdict(list)
    for _, _, _, series, _, content in record.samples:
        by_series[series].append(str(content))
    for contents in by_series.values():
        yield hashlib.sha256(" ".join(sorted(contents)).encode()).digest()


def of_label_values(records: Iterable[Record], names: Mapping[str, str]) -> list[str]:
    """Return a line if label maps hold values that have no name, although others have: they may be of something else.

    names  label value → name, as layouts, descriptions and the user say
    """
    rows = [row for record in records for row in record.rows if row["status"] == "accepted"]
    unnamed = sorted({int(value) for row in rows for value in row["annotated"]} - {int(value) for value in names})
    if not unnamed:
        return []
    which = ", ".join(map(str, unnamed[:8])) + (" …" if len(unnamed) > 8 else "")
    return [
        f"label maps hold {which}, for which no name was found, unlike for {', '.join(sorted(names, key=int)[:8])}: "
        f"do they belong here? labels.{unnamed[0]}=NAME names a value, layout=none takes none from a layout"
    ]


def _without(there: set[str], patients: int, shares: Mapping[str, float], own: bool = False) -> list[str]:
    empty = [split for split in schema.SPLITS if shares[split] > 0 and split not in there]
    if not empty or not patients:
        return []
    places = " and ".join(empty)
    if own:
        return [f"{_NOBODY} {places}: the data name their splits so; split_from=hash splits them anew"]
    who = "one patient" if patients == 1 else f"{patients} patients"
    keys = " and ".join(f"split.{split}=0" for split in empty)
    remedy = f"more patients, larger shares or {keys} mend it"
    if patients == 1:
        remedy = f"if there are more, patient_from and patient_id say what names them, else set {keys}"
    return [f"{_NOBODY} {places}: a hash of each id draws the split, of {who} here; {remedy}"]
