"""Warnings: what was decided by default and may well be wrong. `strict=true` makes each an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from data_prep import schema
from data_prep.config import SplitConfig
from data_prep.sharding.staging import Record
from meddap.console import say
from meddap.errors import MeddapError


class StrictError(MeddapError):
    """Warnings where `strict` allows none."""


@dataclass
class Warnings:
    """The warnings of one start, said as they come, each once. No line holds an id or a name."""

    strict: bool
    lines: list[str] = field(default_factory=list)

    def add(self, lines: Iterable[str]) -> None:
        """Say lines that were not said before. Raises StrictError if there are any and `strict` is set."""
        new = [line for line in dict.fromkeys(lines) if line not in self.lines]
        for line in new:
            say(f"warning: {line}")
        self.lines += new
        if new and self.strict:
            what = "the warning above is an error" if len(new) == 1 else f"the {len(new)} warnings above are errors"
            raise StrictError(f"strict=true: {what}; do what it names, or leave strict out")


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
    """Return lines about what staging found: splits whose patients were all left out, label maps that were not used."""
    rows: list[dict] = []
    splits: dict[str, str] = {}
    for record in records:
        rows += record.rows
        if record.samples:
            splits[record.subject] = record.split
    stacks = {row["stack"]: row["notes"] for row in rows if row["status"] == "accepted"}
    reasons = Counter(notes["labels_left_out"] for notes in stacks.values() if "labels_left_out" in notes)
    lines = [f"{count} series without their label map: {reason}" for reason, count in reasons.most_common()]
    return [*of_split(splits, shares, own), *lines]


def _without(there: set[str], patients: int, shares: Mapping[str, float], own: bool = False) -> list[str]:
    empty = [split for split in schema.SPLITS if shares[split] > 0 and split not in there]
    if not empty or not patients:
        return []
    places = " and ".join(empty)
    if own:
        return [f"no patient in {places}: the data name their splits so; split_from=hash splits them anew"]
    who = "one patient" if patients == 1 else f"{patients} patients"
    keys = " and ".join(f"split.{split}=0" for split in empty)
    remedy = f"more patients, other shares or {keys} mend it"
    if patients == 1:
        remedy = f"if there are more, patient_from and patient_id say what names them, else set {keys}"
    return [f"no patient in {places}: a hash of the id decides, and it had {who}; {remedy}"]
