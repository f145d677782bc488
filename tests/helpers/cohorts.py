"""Made-up patients whose features say, with noise, what their targets are; and a probe fitted on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from eval import contract
from eval.config import (
    AnomalyConfig,
    AttentiveConfig,
    FewShotConfig,
    FractionConfig,
    LinearConfig,
    LogisticConfig,
    MilConfig,
    TaskConfig,
    TaskSplitConfig,
    VolumeHeadConfig,
)
from eval.contract import Context
from eval.data import splits
from eval.data.cohorts import Base, Cohort
from eval.data.examples import Examples, Picture
from eval.data.features import StoredFeatures
from eval.probes import registry
from helpers.towers import made_up_language

WIDTH, GRID, PATIENTS, SLICES = 12, 4, 60, 4


def made_up(kind: str, level: str = "slice", seed: int = 0, shuffled: bool = False) -> Base:
    """Patients of four slices whose features say, with noise, what their targets are."""
    rng = np.random.default_rng(seed)
    count = PATIENTS * SLICES
    subjects = np.repeat([f"{n:03d}" for n in range(PATIENTS)], SLICES)
    hidden = np.repeat(rng.normal(size=(PATIENTS, 3)), SLICES, axis=0)
    if level == "slice":
        hidden = hidden + rng.normal(size=hidden.shape)
    mixing = rng.normal(size=(3, WIDTH))
    cls = (hidden @ mixing)[:, None] + 0.7 * rng.normal(size=(count, 2, WIDTH))
    patches = (hidden @ mixing)[:, None] + 0.7 * rng.normal(size=(count, GRID * GRID, WIDTH))
    if kind == "anomaly":  # one patch of an abnormal slice lies elsewhere
        patches = 0.3 * rng.normal(size=patches.shape) + np.ones(WIDTH)
        sick = np.flatnonzero(hidden[:, 0] > 0)
        patches[sick, 5] += np.where(np.arange(WIDTH) % 2, 2.5, -2.5)
    targets = {
        "binary": (hidden[:, :1] > 0).astype(float),
        "anomaly": (hidden[:, :1] > 0).astype(float),
        "multiclass": hidden.argmax(axis=1)[:, None].astype(float),
        "retrieval": hidden.argmax(axis=1)[:, None].astype(float),
        "multilabel": np.where(rng.random((count, 3)) < 0.1, np.nan, hidden > 0.2),
        "regression": np.where(rng.random((count, 3)) < 0.1, np.nan, hidden * 5 + 40),
        "survival": np.stack([np.exp(-hidden[:, 0]) * rng.exponential(size=count), rng.random(count) < 0.7], axis=1),
        "segmentation": (hidden > 0.2).astype(float),
    }[kind]
    maps = np.zeros((count, 16, 16), np.uint8)
    if kind == "anomaly":
        maps[np.flatnonzero(targets[:, 0]), 4:8, 4:8] = 1
    if kind == "segmentation":  # a structure covers a row of patches, which then look like it
        directions = rng.normal(size=(3, WIDTH))
        for place in range(3):
            there = np.flatnonzero(targets[:, place])
            maps[there, 4 * place : 4 * place + 4] = place + 1
            patches[there, 4 * place : 4 * place + 4] += 2 * directions[place]
    if shuffled:  # whole patients, as a study with false labels would have it
        order = np.concatenate([np.arange(SLICES) + SLICES * n for n in rng.permutation(PATIENTS)])
        targets, maps = targets[order], maps[order]
        if level == "slice":
            order = rng.permutation(count)
            targets, maps = targets[order], maps[order]
        if kind == "segmentation":  # and which structure it is, for their places in the slice are always the same
            for row in range(count):
                renamed = rng.permutation(3)
                maps[row] = np.concatenate([[0], renamed + 1]).astype(np.uint8)[maps[row]]
                targets[row, renamed] = targets[row].copy()
        if kind == "anomaly":  # anywhere, for a patch at the edge is never like one in the middle
            for row in np.flatnonzero(targets[:, 0]):
                maps[row] = np.roll(maps[row], 4 * rng.integers(0, 4, 2), axis=(0, 1))
    names = ("yes",) if kind in ("binary", "anomaly") else ("a", "b", "c")
    keys = np.array([f"{n:04d}" for n in range(count)])
    examples = Examples(
        names=names,
        values={"segmentation": (1, 2, 3), "anomaly": (1,)}.get(kind, ()),
        keys=keys,
        subjects=subjects,
        studies=subjects,
        sites=np.where(np.arange(count) < count // 3, "one", "two"),
        splits=np.full(count, ""),
        orders=np.tile(np.arange(SLICES), PATIENTS),
        positions=np.zeros(count),
        digests=np.arange(count).astype(np.uint64),
        targets=targets.astype(float),
        annotated=np.ones((count, 3 if kind == "segmentation" else 0), bool),
        reader=lambda n: Picture(np.zeros((1, 16, 16), np.uint8), ("x",), "unit8", (0, 16, 0, 16), labelmap=maps[n]),
        version=f"{kind} {seed} {shuffled}",
    )
    features = StoredFeatures(cls.astype(np.float32), cls.astype(np.float32), patches.astype(np.float16), (1,))
    return Base(examples, features, task(kind, level), Path())


def task(kind: str, level: str = "slice", **changes) -> TaskConfig:
    """Settings that take seconds."""
    return TaskConfig(
        data="made up",
        kind=kind,
        level=level,
        size=16,
        split=TaskSplitConfig(by="patient", train=0.5, val=0.2, test=0.3),
        logistic=LogisticConfig(strengths=4, low=1e-2, high=10, steps=20),
        linear=LinearConfig(steps=150, batch_size=64),
        attentive=AttentiveConfig(lr=[3e-3], epochs=12, batch_size=32),
        mil=MilConfig(lr=[3e-3], epochs=60),
        few_shot=FewShotConfig(shots=[1, 8], draws=10),
        fractions=FractionConfig(percent=[10, 100], draws=2),
        anomaly=AnomalyConfig(memory=400, neighbours=[1, 3], top=[0.0, 0.2]),
        stack3d=VolumeHeadConfig(blocks=[-1], depth=SLICES, channels=8, epochs=12, lr=[1e-2]),
        draws=100,
        **changes,
    )


def fitted(name: str, base: Base, cache: Path, language: object = None) -> tuple[contract.Fitted, Cohort]:
    """One probe, and the test patients; `language` is the encoder's text tower, else a made-up one."""
    base = replace(base, cache=cache)
    (fold,) = splits.folds(base.examples, base.task)
    parts = {each: Cohort(each, base, rows) for each, rows in fold.rows.items()}
    module = registry.find([name], base.task.kind, base.task.level, base.task.refit)[name]
    words = SimpleNamespace(depth=2, source="made up", language=language or made_up_language(WIDTH))
    context = Context(base.task, words, cache)
    return module.fit(parts["train"], parts["val"], context), parts["test"]
