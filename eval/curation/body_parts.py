"""The body part of a slice: as its header or the user says, else as the labelled slices most like it; or unknown.

A guess needs the agreement of its nearest labelled slices, and must lie as near to one as labelled slices of different
patients lie to each other. How often such guesses are right is measured on the labelled slices, patient by patient.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.config import BodyPartConfig
from eval.curation.catalogue import Catalogue, key_hash
from meddap.settings import SettingsError

_COLUMNS = ("slice", "body_part")
_BLOCK = 1024  # slices whose nearest labelled ones are looked for at a time
_FEWEST = 2  # patients with labels, without whom nothing can be measured


@dataclass(frozen=True)
class Guessed:
    """codes (n,) into `words`, 0 where unknown; `figures` are counts and accuracy for people, {} where nobody asked."""

    words: list[str]
    codes: np.ndarray
    figures: dict[str, Any]


def read_labels(path: Path) -> dict[int, str]:
    """Return `key_hash` of a slice's name → its body part, from a CSV with columns slice, body_part.

    Raises SettingsError, with the line, for a file that cannot be read, lacks a column, or names a slice twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if missing := [name for name in _COLUMNS if name not in (table.fieldnames or ())]:
                raise SettingsError(f"{path}: no column {missing[0]}; it needs {', '.join(_COLUMNS)}")
            rows = list(table)
    except OSError as error:
        raise SettingsError(f"--body-parts {path}: {error.strerror}; give a CSV") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"--body-parts {path}: not a CSV in UTF-8 ({error})") from error
    found: dict[int, str] = {}
    for number, row in enumerate(rows, 2):
        name, part = (str(row[column] or "").strip() for column in _COLUMNS)
        if not name or not re.fullmatch(r"[A-Za-z0-9 _/+-]{1,32}", part):
            raise SettingsError(f"{path}: line {number}: {part!r} is not a body part; give up to 32 letters")
        if key_hash(name) in found:
            raise SettingsError(f"{path}: line {number}: slice {name} is there twice; leave one out")
        found[key_hash(name)] = part.upper()
    if not found:
        raise SettingsError(f"{path}: names no slice; leave --body-parts out")
    return found


def stated(catalogue: Catalogue, rows: np.ndarray, labels: dict[int, str], path: Path | None) -> Guessed:
    """Return what headers and the user say of slices `rows`; the user's word counts where both speak.

    Raises SettingsError where the user names slices that are not in the split.
    """
    words, codes = list(catalogue.words["body_part"]), catalogue.codes["body_part"][rows].astype(np.int64)
    if labels:
        keys = catalogue.key[rows]
        strange = len(labels) - int(np.isin(keys, np.array(list(labels), np.uint64)).sum())
        if strange:
            raise SettingsError(
                f"{path}: {strange} of {len(labels)} slices are not in the split; give names of samples"
            )
        for place in np.flatnonzero(np.isin(keys, np.array(list(labels), np.uint64))):
            part = labels[int(keys[place])]
            if part not in words:
                words.append(part)
            codes[place] = words.index(part)
    return Guessed(words, codes, {})


def guessed(known: Guessed, vectors: np.ndarray, patients: np.ndarray, config: BodyPartConfig, seed: int) -> Guessed:
    """Return `known` with the unknown slices guessed where that is safe.

    vectors  (n, D) of length 1; patients (n,) whose slice each is
    """
    unknown, labelled = np.flatnonzero(known.codes == 0), np.flatnonzero(known.codes)
    figures: dict[str, Any] = {"stated": len(labelled), "guessed": 0, "unknown": len(unknown)}
    if len(labelled) > config.most:
        labelled = np.sort(np.random.default_rng(seed).choice(labelled, config.most, replace=False))
    if not len(unknown) or len(np.unique(patients[labelled])) < _FEWEST:
        figures["why"] = f"labels of fewer than {_FEWEST} patients" if len(unknown) else "all are stated"
        return Guessed(known.words, known.codes, figures)
    base, code = np.asarray(vectors[labelled], np.float32), known.codes[labelled]
    owner = patients[labelled]
    votes, near = _vote(base, owner, base, owner, code, config.k)
    least = float(np.quantile(near, 0.05))
    sure = (votes[1] >= config.agreement) & (near >= least)
    figures |= {
        "nearest_at_least": round(least, 4),
        "labelled_guessed": round(float(sure.mean()), 4),
        "labelled_right": round(float((votes[0] == code)[sure].mean()), 4) if sure.any() else None,
    }
    codes = known.codes.copy()
    if figures["labelled_right"] is None or figures["labelled_right"] < config.accuracy:
        figures["why"] = f"guesses of labelled slices are right in fewer than {config.accuracy:g}"
        return Guessed(known.words, codes, figures)
    for start in range(0, len(unknown), _BLOCK):
        some = unknown[start : start + _BLOCK]
        none = np.full(len(some), -1, np.int64)
        (part, share), near = _vote(np.asarray(vectors[some], np.float32), none, base, owner, code, config.k)
        codes[some] = np.where((share >= config.agreement) & (near >= least), part, 0)
    figures |= {"guessed": int((codes[unknown] > 0).sum()), "unknown": int((codes == 0).sum())}
    return Guessed(known.words, codes, figures)


def _vote(
    asked: np.ndarray, asker: np.ndarray, base: np.ndarray, owner: np.ndarray, code: np.ndarray, k: int
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return ((part, its share of the votes), similarity of the nearest), (n,) each, by other patients' slices."""
    parts, shares, nearest = [], [], []
    for start in range(0, len(asked), _BLOCK):
        likeness = asked[start : start + _BLOCK] @ base.T
        likeness[owner[None] == asker[start : start + _BLOCK, None]] = -np.inf
        count = min(k, len(base))
        place = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        like = np.take_along_axis(likeness, place, axis=1)
        votes = np.zeros((len(place), int(code.max()) + 1))
        np.add.at(votes, (np.arange(len(place))[:, None], code[place]), np.isfinite(like))
        parts.append(votes.argmax(axis=1))
        shares.append(votes.max(axis=1) / count)
        nearest.append(like.max(axis=1))
    return (np.concatenate(parts), np.concatenate(shares)), np.concatenate(nearest)
