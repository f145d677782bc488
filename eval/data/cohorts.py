"""Training, validation or test patients as probes see them: units (slices or volumes), their features, targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from eval.config import Pooling, TaskConfig
from eval.data.examples import Examples, states
from eval.data.features import Rows, StoredFeatures, image_stack, label_maps


@dataclass(frozen=True)
class Base:
    """All examples of a run and their features (None where every probe works on pixels).

    window     HU that become 0 and 1 in images
    sequences  of the images, in this order; None: those that the examples have
    channels   of each sequence in images: as many as the encoder takes
    """

    examples: Examples
    features: StoredFeatures | None
    task: TaskConfig
    cache: Path
    window: tuple[float, float] = (-1000.0, 1000.0)
    sequences: tuple[str, ...] | None = None
    channels: int = 1


class Cohort:
    """Training, validation or test patients.

    A unit is what a prediction is made for: a slice, or a volume (task.level). N slices make U units.
    """

    def __init__(self, name: str, base: Base, rows: np.ndarray) -> None:
        self.name, self.base, self.rows = name, base, np.asarray(rows)
        self._maps: dict[int, Rows] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def plus(self, other: Cohort) -> Cohort:
        """Return the patients of both: to fit again once the choice is made."""
        return Cohort(f"{self.name}+{other.name}", self.base, np.concatenate([self.rows, other.rows]))

    def only(self, units: np.ndarray) -> Cohort:
        """Return some of the units (numbers), with all their slices."""
        return Cohort(self.name, self.base, self.rows[np.isin(self.unit, units)])

    @cached_property
    def examples(self) -> Examples:
        """The N slices."""
        return self.base.examples.take(self.rows)

    @cached_property
    def features(self) -> StoredFeatures:
        """Features of the N slices; only where a probe reads such."""
        assert self.base.features is not None
        return self.base.features.take(self.rows)

    def maps(self, side: int) -> Rows:
        """Return (N, side, side) uint8 label maps of the squares that the encoder sees, read when asked for."""
        if side not in self._maps:
            stored = label_maps(self.base.examples, side, self.base.cache)
            self._maps[side] = Rows(stored, self.rows)
        return self._maps[side]

    @cached_property
    def images(self) -> Rows:
        """(N, S·C, size, size) float16 images in 0…1, read when asked for (see features.image_stack)."""
        base = self.base
        stack = image_stack(base.examples, base.task.size, base.window, base.cache, base.sequences, base.channels)
        return Rows(stack, self.rows)

    @property
    def stored_patches(self) -> Rows:
        """(N, P, blocks · D) patch features of all blocks, read when asked for; only where a probe reads such."""
        stored = self.features.patches
        assert isinstance(stored, Rows)
        return stored

    def patches(self, rows: np.ndarray, blocks: Sequence[int]) -> torch.Tensor:
        """Return (n, P, len(blocks) · D) float32 patch features of some slices.

        blocks  counted from 0, or negative from the last one that was extracted, which is the encoder's last
        """
        stored, there = self.stored_patches, self.features.blocks
        places = [there.index(number) if number >= 0 else len(there) + number for number in blocks]
        found = np.asarray(stored[rows])
        if places == list(range(len(there))):
            return torch.from_numpy(found.astype(np.float32))
        parts = found.reshape(*found.shape[:2], len(there), -1)[:, :, places]
        return torch.from_numpy(parts.reshape(*found.shape[:2], -1).astype(np.float32))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of labels, classes or structures."""
        return self.base.examples.names

    @cached_property
    def _grouped(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of the unit of each slice, and each unit's first slice; units in the order of their first slice."""
        if self.base.task.level == "slice":
            return np.arange(len(self.rows)), np.arange(len(self.rows))
        _, first, number = np.unique(self.examples.studies, return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return place[number], first[order]

    @property
    def unit(self) -> np.ndarray:
        """(N,) the unit of each slice."""
        return self._grouped[0]

    @cached_property
    def targets(self) -> np.ndarray:
        """(U, T), see Examples.targets. Of a volume: whether any slice has the structure; else its first slice's."""
        all_targets = self.examples.targets
        if self.base.task.level == "slice" or not self.base.examples.annotated.shape[1]:
            return all_targets[self._grouped[1]]
        found = np.full((self.unit.max(initial=-1) + 1, all_targets.shape[1]), -np.inf)
        np.maximum.at(found, self.unit, np.where(np.isnan(all_targets), -np.inf, all_targets))
        return np.where(np.isinf(found), np.nan, found)

    @cached_property
    def subjects(self) -> np.ndarray:
        """(U,) patients."""
        return self.examples.subjects[self._grouped[1]]

    @cached_property
    def sites(self) -> np.ndarray:
        """(U,) sites."""
        return self.examples.sites[self._grouped[1]]

    @cached_property
    def keys(self) -> np.ndarray:
        """(U,) unique names."""
        return (self.examples.keys if self.base.task.level == "slice" else self.examples.studies)[self._grouped[1]]

    @cached_property
    def states(self) -> np.ndarray:
        """(U, O) int8 in {1, 0, −1 unknown}: a column for each label or class."""
        return states(self.targets, self.base.task.kind, len(self.names))

    def slices(self, blocks: int = 1, mean_patch: bool = True) -> np.ndarray:
        """Return (N, D') float32: cls tokens of the last `blocks` blocks and, if asked for, the last mean patch."""
        found = self.features
        parts = [found.cls[:, -blocks:].reshape(len(self.rows), -1)]
        if mean_patch:
            parts.append(found.mean[:, -1])
        return np.concatenate(parts, axis=1)

    def pooled(self, blocks: int = 1, mean_patch: bool | None = None, how: Pooling | None = None) -> np.ndarray:
        """Return (U, D') the same for every unit: the mean or maximum over a volume's slices (`how`, or task.pool).

        mean_patch  None: as task.mean_patch says
        """
        slices = self.slices(blocks, self.base.task.mean_patch if mean_patch is None else mean_patch)
        return slices if self.base.task.level == "slice" else pool(slices, self.unit, how or self.base.task.pool)


def pool(slices: np.ndarray, unit: np.ndarray, how: Pooling) -> np.ndarray:
    """Return (U, D) from (N, D): mean or maximum over the slices of each unit."""
    count = unit.max(initial=-1) + 1
    if how == "max":
        found = np.full((count, slices.shape[1]), -np.inf, slices.dtype)
        np.maximum.at(found, unit, slices)
        return found
    total = np.zeros((count, slices.shape[1]), np.float64)
    np.add.at(total, unit, slices)
    return (total / np.bincount(unit, minlength=count)[:, None]).astype(slices.dtype)
