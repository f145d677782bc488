"""Weights of the slices of one split, made from duplicates and attributes, and written as the schema says."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import schema
from eval.config import CurateConfig
from eval.curation import balance, hierarchy
from eval.curation.catalogue import ATTRIBUTES, UNKNOWN, Catalogue
from meddap.disk import write_atomic
from meddap.settings import SettingsError

CLUSTER = "cluster"  # of an encoder's features, beside what headers say


@dataclass(frozen=True)
class Attribute:
    """What is balanced.

    words, codes  its words and the number of each slice's word (N,); unknown  the number of the one that says nothing
    above         for clusters of clusters: for each level above the first the cluster of each one below
    """

    words: list[str]
    codes: np.ndarray
    strength: float
    unknown: int | None = 0
    above: tuple[np.ndarray, ...] = ()

    def shown(self, codes: np.ndarray) -> np.ndarray:
        """Return the numbers of words as people see them: of the topmost clusters."""
        for level in self.above:
            codes = level[codes]
        return codes


@dataclass(frozen=True)
class Weighed:
    """Weights of the n slices `rows` of the catalogue, and the shares of every attribute's words.

    start  (n,) weights by duplicates alone; shares  attribute → {"words", "before", "after", "strength"}
    left_out  attributes that were asked for and say nothing here, with the reason
    """

    rows: np.ndarray
    start: np.ndarray
    fit: balance.Balance
    shares: dict[str, dict[str, Any]]
    left_out: dict[str, str]


def check_strengths(strengths: Mapping[str, float]) -> None:
    """Raise SettingsError for an attribute that headers do not have, or a strength outside 0 to 1."""
    for name, strength in strengths.items():
        if name not in (*ATTRIBUTES, CLUSTER):
            raise SettingsError(f"balance.{name}: unknown; take {', '.join((*ATTRIBUTES, CLUSTER))}")
        if not 0 <= strength <= 1:
            raise SettingsError(f"balance.{name}={strength}: expected from 0 to 1")


def attributes(catalogue: Catalogue, strengths: Mapping[str, float]) -> dict[str, Attribute]:
    """Return what the headers say, for the attributes whose strengths are given."""
    return {
        name: Attribute(catalogue.words[name], catalogue.codes[name], strengths[name])
        for name in ATTRIBUTES
        if name in strengths
    }


def weigh(
    catalogue: Catalogue,
    clusters: np.ndarray,
    found: Mapping[str, Attribute],
    config: CurateConfig,
    banned: np.ndarray,
) -> Weighed:
    """Return the weights of the split that the configuration names.

    clusters  (N,) of duplicates; banned (N,) bool: slices that get weight 0
    """
    rows = np.flatnonzero((catalogue.split == catalogue.splits.index(config.split)) & ~banned)
    if not len(rows):
        raise SettingsError(f"split={config.split}: leaks=leave_out leaves no slice; make the splits again")
    start = balance.once(clusters[rows], config.duplicates.keep)
    used, left_out = {}, {}
    for name, each in found.items():
        codes = each.codes[rows]
        said = np.unique(codes[codes != each.unknown] if each.unknown is not None else codes)
        if len(said) < 2:
            left_out[name] = f"all {each.words[said[0]]}" if len(said) else UNKNOWN
            continue
        wanted = hierarchy.shares([codes, *each.above], start, each.strength) if each.above else None
        used[name] = codes, balance.targets(codes, start, each.strength, each.unknown) if wanted is None else wanted
    fit = balance.balanced(start, used, config.max_weight, config.min_weight)
    shares = {}
    for name, (codes, _) in used.items():
        words, codes = found[name].words, found[name].shown(codes)
        before = np.bincount(codes, minlength=len(words)) / len(codes)
        after = np.bincount(codes, fit.weights, len(words)) / fit.weights.sum()
        shares[name] = {
            "strength": found[name].strength,
            "words": {
                word: [round(float(one), 6), round(float(other), 6)]
                for word, one, other in zip(words, before, after)
                if one > 0
            },
        }
    return Weighed(rows, start, fit, shares, left_out)


def write(root: Path, catalogue: Catalogue, weighed: Weighed, config: CurateConfig, made_with: dict[str, Any]) -> Path:
    """Write the weights beside the shards, `.weights.json` last; return the path of the array.

    Weights that are there already must be those that would be written: raises SettingsError.
    """
    path, about = schema.weights_of(root, config.name)
    mine = catalogue.split == catalogue.splits.index(config.split)
    whole = np.zeros(len(catalogue), np.float32)
    whole[weighed.rows] = weighed.fit.weights
    memory = io.BytesIO()
    np.save(memory, whole[mine])
    digest = schema.read_dataset(root)["digest"]
    shares = {name: each["words"] for name, each in weighed.shares.items()}
    record = {"digest": digest, "split": config.split, "made_with": made_with, "shares": shares}
    described = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    if about.is_file() and (about.read_bytes(), path.is_file() and path.read_bytes()) != (described, memory.getvalue()):
        raise SettingsError(f"{about}: other weights have this name; give name=OTHER, or delete them")
    write_atomic(path, memory.getvalue())
    write_atomic(about, described)
    return path
