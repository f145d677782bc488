"""The JSON file in which nnU-Net and the Decathlon describe a data set: names of label values and of channels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from data_prep.discovery import sequences
from data_prep.discovery.layouts.rules import LayoutError
from data_prep.volumes import zips
from meddap.records import RecordError, read_json

_CHANNEL = re.compile(r"\d+")
_LONGEST = 64  # characters of a name


@dataclass(frozen=True)
class Description:
    """The content of a description (`dataset.json`).

    labels    label value → name
    regions   name → values, where it names overlapping regions instead of values
    channels  number → name
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    channels: Mapping[int, str] = field(default_factory=dict)

    def label_problem(self, named: Mapping[str, str]) -> str:
        """Return why its label maps cannot be used; "" if they can. `named`: label values that the user names."""
        values = sorted({value for region in self.regions.values() for value in region})
        unnamed = [value for value in values if str(value) not in named]
        if not unnamed:
            return ""
        example = next(f"{name}: {', '.join(map(str, region))}" for name, region in self.regions.items())
        return f"described by regions ({example}), not by labels; labels.{unnamed[0]}=NAME and so on name its values"

    def channel(self, number: str) -> str:
        """Return the name of a channel ("0001"); "" if it has none."""
        return self.channels.get(int(number), "") if _CHANNEL.fullmatch(number) else ""

    def channel_problem(self, number: str, modality: str) -> str:
        """Return why a command for `modality` ("CT" or "MR") cannot take a channel; "" if it can."""
        name = self.channel(number)
        if not name:  # rules may also name a sequence outright, which is no number
            lacking = self.channels and _CHANNEL.fullmatch(number)
            return f"channel {number[:8]} is not among the {len(self.channels)} described" if lacking else ""
        others = [other for other in self.channels.values() if _is_ct(other)]
        if modality == "MR":
            return f"channel {_short(name)}; shard_ct.py takes it" if _is_ct(name) else ""
        if len(self.channels) > 1 and len(others) != 1:
            which = ", ".join(_short(other) for other in self.channels.values())
            return f"one of several channels ({which}), {len(others)} named CT; layout=none takes each file by itself"
        if len(self.channels) > 1 and not _is_ct(name):
            return f"channel {_short(name)} beside the CT of its case"
        return f"channel {_short(name)}; shard_mri.py takes it" if sequence_of(name) else ""


def sequence_of(channel: str) -> str:
    """Return the sequence that a channel's name says; "" if it says none."""
    guess = sequences.by_words(PurePath(f"{channel.replace('/', ' ')}.nii"))
    return guess.sequence if guess else ""


def read(path: Path, said: str) -> Description:
    """Read a description; one that is not there says nothing. Raises LayoutError, which calls it `said`."""
    if not zips.is_file(path):
        return Description()
    with zips.local(path) as local:
        try:
            content = read_json(Path(local), {}, "mend or remove it, or set layout=none")
        except RecordError as error:  # its path might name a patient
            raise LayoutError(str(error).replace(local, said)) from error
    labels = _mapping(content, "labels", said)
    channels = _mapping(content, "channel_names" if "channel_names" in content else "modality", said)
    by_value, regions = _labels(labels, said)
    numbered = {}
    for number, name in channels.items():
        if not str(number).isdecimal() or not isinstance(name, str):
            raise _wrong(said, f"channel {number!r}: {name!r} is not a number with a name")
        numbered[int(number)] = name
    return Description(by_value, regions, numbered)


def _labels(labels: Mapping[str, Any], said: str) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Return value → name and region → values of either version: number → name, or name → number or list."""
    first = bool(labels) and all(key.isdecimal() for key in labels) and all(isinstance(v, str) for v in labels.values())
    by_value: dict[str, str] = {}
    regions: dict[str, tuple[int, ...]] = {}
    for name, value in ((v, k) for k, v in labels.items()) if first else labels.items():
        listed = value if isinstance(value, list) else [value]
        if not all(str(one).isdecimal() for one in listed) or not listed:
            raise _wrong(said, f"label {str(name)[:_LONGEST]!r} has the value {str(value)[:_LONGEST]}, not a number")
        if isinstance(value, list):
            regions[_short(name)] = tuple(int(one) for one in listed)
        elif int(value) and by_value.setdefault(str(int(value)), _short(name)) != _short(name):
            raise _wrong(said, f"label value {value} has two names")
    return by_value, regions


def _mapping(content: Any, key: str, said: str) -> dict[str, Any]:
    value = content.get(key) or {}
    if isinstance(value, list):  # ["CT"] for {"0": "CT"}
        value = {str(place): name for place, name in enumerate(value)}
    if not isinstance(value, dict):
        raise _wrong(said, f"{key} is not a mapping")
    return value


def _is_ct(name: str) -> bool:
    return "ct" in sequences.tokens(name)


def _short(name: str) -> str:
    return name.strip()[:_LONGEST]


def _wrong(said: str, what: str) -> LayoutError:
    return LayoutError(f"{said}: {what}; mend or remove it, or set layout=none")
