"""Who trains, who chooses and who is tested: whole patients, one fold or several."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from data_prep.schema import SPLITS
from eval.config import TaskConfig, TaskSplitConfig
from eval.data.examples import Examples
from meddap.settings import SettingsError


@dataclass(frozen=True)
class Fold:
    """One division: name ("" where there is one only) and the rows of train, val and test."""

    name: str
    rows: dict[str, np.ndarray]


def folds(examples: Examples, task: TaskConfig) -> list[Fold]:
    """Return the divisions that `task.split` asks for, each checked.

    Raises SettingsError for a patient in two splits, or a split without patients.
    """
    config = task.split
    if config.by == "given":
        found = [_given(examples, config)]
    elif config.by == "patient":
        shares = np.array([config.train, config.val, config.test])
        if (shares < 0).any() or not shares.sum():
            raise SettingsError(f"split: shares {shares.tolist()} must not be negative and some must be above 0")
        place = _places(examples.subjects, config.salt)
        ends = np.cumsum(shares / shares.sum())
        found = [Fold("", {name: np.flatnonzero(np.searchsorted(ends, place) == n) for n, name in enumerate(SPLITS)})]
    elif config.by == "kfold":
        found = _kfold(examples, config)
    else:
        found = _by_site(examples, config)
    for fold in found:
        _check(examples, fold, task)
    return found


def _places(subjects: np.ndarray, salt: str) -> np.ndarray:
    """Return (N,) in 0…1, a pure function of the patient."""
    places = {
        each: int(hashlib.sha256(f"split:{salt}:{each}".encode()).hexdigest()[:16], 16) / 2**64
        for each in np.unique(subjects)
    }
    return np.array([places[each] for each in subjects])


def _given(examples: Examples, config: TaskSplitConfig) -> Fold:
    """Return the data's own splits; without validation patients, some of the training patients take their place.

    Examples of no split belong to training where the data know others, for that is what test folders mean.
    """
    splits = examples.splits.astype("U5")  # wide enough for every name, whichever the data have
    if not (splits == "test").any():
        raise SettingsError("split.by=given: the data name no test patients; take split.by=patient, kfold or site")
    splits[splits == ""] = "train"
    if not (splits == "val").any():
        train = splits == "train"
        splits[train & (_places(examples.subjects, config.salt) < config.val)] = "val"
    return Fold("", {name: np.flatnonzero(splits == name) for name in SPLITS})


def _rest(examples: Examples, test: np.ndarray, config: TaskSplitConfig, name: str) -> Fold:
    """Return a fold whose `test` rows are given; validation patients are drawn from the others."""
    val = ~test & (_places(examples.subjects, f"val:{config.salt}") < config.val)
    parts = {"train": ~test & ~val, "val": val, "test": test}
    return Fold(name, {each: np.flatnonzero(mask) for each, mask in parts.items()})


def _kfold(examples: Examples, config: TaskSplitConfig) -> list[Fold]:
    patients, of = np.unique(examples.subjects, return_inverse=True)
    if not 2 <= config.folds <= len(patients):
        raise SettingsError(f"split.folds={config.folds}: expected 2 to {len(patients)}, the number of patients")
    order = np.argsort(_places(patients, config.salt), kind="stable")
    number = np.empty(len(patients), np.int64)
    number[order] = np.arange(len(patients)) % config.folds
    return [_rest(examples, number[of] == fold, config, f"fold {fold + 1}") for fold in range(config.folds)]


def _by_site(examples: Examples, config: TaskSplitConfig) -> list[Fold]:
    sites = np.unique(examples.sites)
    if len(sites) < 2 or "" in sites:
        raise SettingsError(f"split.by=site: {len(sites)} sites and {(examples.sites == '').sum()} slices without one")
    return [_rest(examples, examples.sites == site, config, str(site)) for site in sites]


def _check(examples: Examples, fold: Fold, task: TaskConfig) -> None:
    where = f"{task.data}: {fold.name}: " if fold.name else f"{task.data}: "
    patients = {name: set(examples.subjects[rows].tolist()) for name, rows in fold.rows.items()}
    for name, mine in patients.items():
        if not mine:
            raise SettingsError(f"{where}split {name!r} has no patients; give it more, or another split.salt")
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := patients[one] & patients[other]:
            hint = "shard again" if task.source == "shards" else "mend the split, or take split.by=patient"
            raise SettingsError(f"{where}{len(both)} patients are in {one} and in {other}; {hint}")
