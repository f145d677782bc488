"""Whether the test patients were seen before: by pretraining, or by training under another id.

Pretraining's patients are known by hashed id and by digests of their pixels, so that neither another salt nor another
name hides them. Which data an encoder saw stands in its checkpoint (and in what that was initialised from); for other
weights the user may say so with `pretraining=[SHARDS, …]`. What cannot be checked is reported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.schema import SchemaError, Split, channels_of, content_digest, short_hash
from eval.config import TaskConfig
from eval.data.examples import Examples
from eval.data.files import FileError
from eval.data.splits import Fold
from eval.encoders import colours
from meddap.disk import write_atomic
from meddap.records import read_json
from meddap.settings import SettingsError
from pretrain.config import load, recorded, sources_of
from pretrain.runtime.checkpoint import CheckpointError
from pretrain.weights import encoder


@dataclass(frozen=True)
class Leaks:
    """What was found, patients by their hashed ids.

    checked    data sets that the encoder saw and that were compared
    unchecked  why it is not known what the encoder saw, or ""
    by_id      test patients whose id is among pretraining's
    by_pixels  test patients of whom a slice has the pixels of one of pretraining's
    in_splits  test patients of whom a slice has the pixels of a training or validation slice under another id
    patients   number of test patients
    """

    checked: tuple[str, ...]
    unchecked: str
    by_id: tuple[str, ...]
    by_pixels: tuple[str, ...]
    in_splits: tuple[str, ...]
    patients: int

    @property
    def found(self) -> bool:
        """Whether any test patient was seen before."""
        return bool(self.by_id or self.by_pixels or self.in_splits)

    def row(self) -> dict[str, object]:
        """Return numbers of patients for a row of results."""
        counts = {name: len(getattr(self, name)) for name in ("by_id", "by_pixels", "in_splits")}
        return {"checked": list(self.checked), "unchecked": self.unchecked, **counts}

    def lines(self, who: str = "test") -> list[str]:
        """Return what to tell the user, the patients named by their hashes; `who`: the patients that were checked."""
        said = []
        texts = {
            "by_id": "are among the patients of pretraining",
            "by_pixels": "have slices with the very pixels of pretraining's",
            "in_splits": "have slices with the very pixels of training or validation slices under another id",
        }
        for name, text in texts.items():
            if mine := getattr(self, name):
                some = ", ".join(each[:12] for each in mine[:5]) + (" …" if len(mine) > 5 else "")
                said.append(f"leak: {len(mine)} of {self.patients} {who} patients {text}: {some}")
        if self.unchecked:
            said.append(f"not checked against pretraining: {self.unchecked}")
        return said


def check(
    checkpoint: str, task: TaskConfig, examples: Examples, folds: Sequence[Fold], cache: Path, who: str = "test"
) -> Leaks:
    """Compare the test patients with what was seen before. Raises SettingsError for a leak where `leaks=refuse`.

    who  what the rows `test` of the folds are called in its message
    """
    sources, unchecked = _seen(checkpoint, task)
    ids, pixels, checked = set(), [np.empty(0, np.uint64)], []
    for root, split in sources:
        try:
            mine = Split(root, split)
        except (SchemaError, OSError) as error:
            unchecked = unchecked or f"{error}; say where it lies now with pretraining=[FOLDER]"
            continue
        ids |= set(mine.index["subject"].tolist())
        pixels.append(_content(mine, cache))
        unchecked = unchecked or _other_colours(mine, task)
        checked.append(f"{Path(root).name}/{split} {mine.dataset['digest'][:12]}")
    test = np.unique(np.concatenate([fold.rows["test"] for fold in folds]))
    tested = examples.take(test)
    hashed = np.array([_short(subject) in ids for subject in tested.subjects], bool)
    same = np.isin(tested.digests, np.concatenate(pixels))
    twice = np.zeros(len(examples), bool)
    for fold in folds:
        rows, others = fold.rows["test"], np.concatenate([fold.rows["train"], fold.rows["val"]]).astype(np.int64)
        twice[rows] |= np.isin(examples.digests[rows], examples.digests[others])
    by_id, by_pixels, in_splits = (_patients(tested, mask) for mask in (hashed, same, twice[test]))
    patients = len(np.unique(tested.subjects))
    found = Leaks(tuple(checked), unchecked, by_id, by_pixels, in_splits, patients)
    if found.found and task.leaks == "refuse":
        raise SettingsError(f"{task.data}: {found.lines(who)[0]}; leaks=mark would mark the table instead")
    return found


def _other_colours(mine: Split, task: TaskConfig) -> str:
    """Return why the same picture has other pixels in pretraining's data set and in the task, or ""."""
    theirs, ours = channels_of(mine.dataset) == 3, colours.in_colour(task)
    if theirs == ours or (mine.dataset["made_with"].get("modality") != "IMAGE" and not theirs):
        return ""
    kept, grey = ("pretraining", "the task") if theirs else ("the task", "pretraining")
    return f"pictures are in colour in {kept} and grey in {grey}, so that their pixels differ; ids alone were compared"


def _patients(examples: Examples, mask: np.ndarray) -> tuple[str, ...]:
    return tuple(np.unique(examples.subjects[mask]).tolist())


def _short(subject: str) -> int | None:
    try:
        return short_hash(subject) if len(subject) == 32 else None
    except ValueError:
        return None


def _seen(checkpoint: str, task: TaskConfig) -> tuple[list[tuple[str, str]], str]:
    """Return (folder, split) of every data set that the encoder learned from, and why more is not known, or ""."""
    named = [_named(word) for word in task.pretraining]
    if checkpoint in ("random", "pixels"):
        return named, ""
    try:
        found, unknown = _of_run(Path(checkpoint))
    except CheckpointError:
        return named, "" if named else "nobody says which images these weights saw; pretraining=[FOLDER] does"
    return named or found, "" if named else unknown  # what the user says takes the place of where data once lay


def _named(word: str) -> tuple[str, str]:
    root, colon, split = word.rpartition(":")
    return (root, split) if colon and split in ("train", "val", "test") else (word, "train")


def _of_run(path: Path, known: frozenset[Path] = frozenset()) -> tuple[list[tuple[str, str]], str]:
    """Return the data of a run and of the runs that it was initialised from; nothing more for `known` runs."""
    step = encoder.find(path).path.resolve()
    run = step.parents[1]
    if run in known:
        return [], ""
    config = load(step / "config.yaml")
    found, unknown = [(source.root, config.data.split) for source in sources_of(config.data).values()], ""
    for name in config.stages:
        if start := recorded(config, name).init_from:
            try:
                more, why = _of_run(Path(start), known | {run})
                found, unknown = found + more, unknown or why
            except CheckpointError:  # published weights: of natural images, or of images that nobody names
                unknown = f"it began from {Path(start).name}, whose images nobody names; pretraining=[FOLDER] does"
    return list(dict.fromkeys(found)), unknown


def _content(split: Split, cache: Path) -> np.ndarray:
    """Return digests of the pixels of a split; read from its slices, once, where the data set has none."""
    if (content := split.content()) is not None:
        return content
    name = hashlib.sha256(f"{split.dataset['digest']} {split.name}".encode()).hexdigest()[:16]
    path = cache / f"content-{name}.json"
    if not path.is_file():
        numbers = tqdm(range(len(split)), "digests of pretraining's pixels", disable=None, leave=False)
        write_atomic(path, json.dumps([content_digest(split[number].pixels) for number in numbers]).encode())
    remedy = "delete it and start again"
    found = read_json(path, [int], remedy)
    if len(found) != len(split):
        raise FileError(f"{path}: {len(found)} digests for {len(split)} slices; {remedy}")
    return np.array(found, np.uint64)
