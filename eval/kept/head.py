"""Fitted heads on the disk, one folder each; reading one executes nothing of it.

    PROBE/heads/NAME/head.safetensors  the arrays, and `training.digests`: of the pixels that the head was fitted on
    PROBE/heads/NAME/head.json         the card for programs: `Head`, and the SHA-256 of the arrays
    PROBE/heads/NAME/card.md           the card for people

NAME is the probe's, `<probe>-fold<n>` where a task has several folds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from eval.config import TaskConfig
from eval.contract import Choices, Context, Fitted, Parts, Probe
from eval.data.files import FileError
from eval.encoders.encoder import FrozenEncoder
from eval.kept import card
from eval.probes import registry
from meddap import __version__
from meddap.disk import write_atomic
from meddap.records import read_json
from meddap.settings import SettingsError, merge

VERSION = 1
_AGAIN = "copy it again, or probe again"
_DIGESTS = "training.digests"
_PATHS: dict[str, Any] = {"data": "", "like": None, "pretraining": []}  # of the task: where things lay on one machine
_FORM = {  # (meddap.records) of head.json
    **{"version": int, "probe": str, "fold": str, "task": dict, "names": [str], "values": [int], "ignored": [int]},
    **{"sequences": [str], "encoder": {"source": str, "digest": str, "window": [float]}, "prepared": dict},
    **{"patients": {...: int}, "training": [str], "plain": dict, "choices": dict, "refitted": bool},
    **{"figures": [dict], "calibration": [dict], "sha256": str, "made_by": str},
}


@dataclass(frozen=True)
class Head:
    """What stands in a head's card.

    probe      its name; fold: "" where the task has one only
    task       without the places where its data lay
    names, values, ignored  those of the examples (eval.data.examples)
    sequences  of the images, in the order in which a network sees them; () where the head reads features alone
    encoder    source, digest, window in HU
    prepared   how the images were prepared: `source`, and for shards `dataset` (its digest), `modality`, `settings`,
               `salt_check`
    patients   numbers of training, validation and test patients; training: salted hashes of those that the head was
               fitted on or chosen by, () where the data name patients by numbers
    figures    rows of results.jsonl, over all labels; and of calibrated predictions
    calibration  maps from the probe's probabilities to calibrated ones (eval.kept.calibration)
    """

    probe: str
    fold: str
    task: TaskConfig
    names: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...]
    sequences: tuple[str, ...]
    encoder: dict[str, Any]
    prepared: dict[str, Any]
    patients: dict[str, int]
    training: tuple[str, ...]
    choices: Choices
    refitted: bool
    figures: tuple[dict[str, Any], ...] = ()
    plain: dict[str, Any] = field(default_factory=dict)
    calibration: tuple[dict[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.probe}-{self.fold}" if self.fold else self.probe


@dataclass(frozen=True)
class StoredHead:
    """A head that was read: its card, its arrays and their SHA-256, digests (N,) uint64 of the pixels that it was
    fitted on."""

    head: Head
    arrays: Mapping[str, np.ndarray]
    sha256: str
    digests: np.ndarray

    @property
    def probe(self) -> Probe:
        """The row of the registry."""
        return registry.PROBES[self.head.probe]

    def fitted(self, encoder: FrozenEncoder, cache: Path) -> Fitted:
        """Return the fitted probe on its encoder. Raises SettingsError for another encoder than the head's."""
        mine = self.head.encoder
        window = [float(value) for value in encoder.window]
        if encoder.digest != mine["digest"] or window != mine["window"]:
            what = "other weights" if encoder.digest != mine["digest"] else f"another window {window}"
            raise SettingsError(
                f"{encoder.source}: {what} than the head {self.head.name} was fitted on ({mine['source']}, digest "
                f"{mine['digest'][:12]}); give that one as --checkpoint, or probe this one"
            )
        head, keeping = self.head, self.probe.keeping
        assert not isinstance(keeping, str)  # what is not kept cannot be read
        parts = Parts(self.arrays, head.plain, head.choices, head.refitted)
        try:
            return keeping.restore(parts, Context(head.task, encoder, cache))
        except (KeyError, ValueError, RuntimeError, IndexError) as error:  # names or shapes of another version
            what = f"does not fit this version ({type(error).__name__}: {error})".splitlines()[0]
            raise FileError(f"head {head.name}: {what}; probe again") from error


def keep(folder: Path, head: Head, fitted: Fitted, digests: np.ndarray) -> str:
    """Write a head below a probe's folder; return "", or why it is not kept."""
    keeping = registry.PROBES[head.probe].keeping
    if isinstance(keeping, str):
        return keeping
    parts = keeping.parts(fitted)
    arrays = {name: np.ascontiguousarray(value) for name, value in parts.arrays.items()}
    size = sum(value.nbytes for value in arrays.values()) / 1e9
    if size > head.task.head_gb:
        return f"{size:.1f} GB, more than head_gb={head.task.head_gb:g}"
    arrays[_DIGESTS] = np.unique(digests).astype(np.uint64)
    payload = save(arrays)
    place = folder / "heads" / head.name
    task = {**asdict(head.task), **_PATHS, "table": {**asdict(head.task.table), "file": None}}
    head = replace(head, plain=dict(parts.plain))
    record = {**vars(head), "task": task, "version": VERSION, "made_by": __version__}
    record["sha256"] = hashlib.sha256(payload).hexdigest()
    write_atomic(place / "head.safetensors", payload)
    write_atomic(place / "card.md", card.markdown(record).encode())
    write_atomic(place / "head.json", (json.dumps(record, indent=1) + "\n").encode())
    return ""


def remove_others(folder: Path, names: Collection[str]) -> None:
    """Remove the heads of earlier runs from a probe's folder: its results are no longer theirs."""
    for place in folder.glob("heads/*/head.json"):
        if place.parent.name not in names:
            place.unlink()  # first, so that what is left is no head
            shutil.rmtree(place.parent)


def find(path: Path) -> Path:
    """Return the folder of the head that --head names: PROBE/NAME, PROBE/heads/NAME, or PROBE if it holds one only.

    Raises SettingsError, which names the heads that are there.
    """
    for place in (path, path.parent / "heads" / path.name):
        if (place / "head.json").is_file():
            return place
    there = sorted(each.parent for each in path.glob("heads/*/head.json"))
    if len(there) == 1:
        return there[0]
    if there:
        names = ", ".join(each.name for each in there)
        raise SettingsError(f"{path}: holds the heads {names}; name one, e.g. {path / there[0].name}")
    if names := ", ".join(sorted(each.parent.name for each in path.parent.glob("heads/*/head.json"))):
        raise SettingsError(f"{path}: no such head; there are {names}")
    raise SettingsError(f"{path}: no fitted head there; name a folder that meddap probe wrote (keep_heads=true)")


def read(path: Path) -> StoredHead:
    """Return the head that --head names (see `find`). Raises SettingsError, or FileError for a damaged one."""
    place = find(path)
    record = read_json(place / "head.json", _FORM, _AGAIN, FileError)
    if record["version"] != VERSION:
        raise FileError(f"{place / 'head.json'}: version {record['version']}, this one reads {VERSION}; probe again")
    if record["probe"] not in registry.PROBES:
        raise FileError(f"{place / 'head.json'}: probe {record['probe']!r} is unknown; probe again")
    file = place / "head.safetensors"
    try:
        payload = file.read_bytes()
    except OSError as error:
        raise FileError(f"{file}: {error.strerror}; {_AGAIN}") from error
    if hashlib.sha256(payload).hexdigest() != record["sha256"]:
        raise FileError(f"{file}: damaged, or of another head than head.json; {_AGAIN}")
    try:
        arrays = load(payload)
    except SafetensorError as error:
        raise FileError(f"{file}: not safetensors; {_AGAIN}") from error
    task = merge(TaskConfig, (str(place / "head.json"), record["task"]))
    named: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    words = {key: named[key] for key in Head.__dataclass_fields__ if key != "task"}
    return StoredHead(Head(task=task, **words), arrays, record["sha256"], arrays.pop(_DIGESTS, np.zeros(0, np.uint64)))


def lines(reasons: Mapping[str, str]) -> Iterator[str]:
    """Yield what to say of heads that were not kept: name → reason, "" for one that was."""
    kept = [name for name, reason in reasons.items() if not reason]
    if kept:
        yield f"heads kept for meddap predict: {', '.join(kept)}"
    yield from (f"{name}: its head is not kept: {reason}" for name, reason in reasons.items() if reason)


def hashes(subjects: Sequence[str]) -> tuple[str, ...]:
    """Return the patients that are named by salted hashes, sorted; others are numbers, which say nothing elsewhere."""
    return tuple(sorted({each for each in map(str, subjects) if len(each) == 32}))
