"""Zero-shot classification: how near an image is to what is said of each class (CLIP, arXiv 2103.00020; SigLIP).

No label is used. Exclusive classes are compared by a softmax. A label is compared with its absence, as in CheXzero
(Tiu et al. 2022); an encoder that was trained to score texts one by one (SigLIP) is asked for each label by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from eval.config import TaskConfig
from eval.contract import Choices, Context, Outcome, Parts, prediction_of
from eval.data.cohorts import Cohort, pool
from eval.encoders import language
from eval.encoders.language import Language
from eval.networks.targets import probabilities
from eval.probes import prompts
from meddap.settings import SettingsError


@dataclass(frozen=True)
class ZeroShot:
    """Features (T, E) of what is said where a class is present and, of labels, absent (else None)."""

    present: torch.Tensor
    absent: torch.Tensor | None
    language: Language
    task: TaskConfig
    choices: Choices
    refitted: bool = False

    def logits(self, cohort: Cohort) -> np.ndarray:
        """Return (N, T) logits of a cohort's slices."""
        images = self.language.images(torch.from_numpy(cohort.slices(1, mean_patch=False)))
        found = self.language.logits(images, self.present)
        if self.absent is not None:
            found = found - self.language.logits(images, self.absent)
        return found.numpy()

    def predict(self, test: Cohort) -> list[Outcome]:
        logits = self.logits(test)
        if self.task.level == "volume":
            logits = pool(logits, test.unit, self.task.pool)
        found = probabilities(torch.from_numpy(logits), self.task.kind == "multiclass")
        return [Outcome(prediction_of(found, test, self.task))]


def fit(train: Cohort, val: Cohort, context: Context) -> ZeroShot:
    """Return the classes in words; patients take no part. Raises SettingsError for an encoder without a text tower."""
    task, tower = context.task, _tower(context)
    said = prompts.of_task(task, train.names)
    pairs = task.kind != "multiclass" and (
        task.zero_shot.labels == "pair" or not tower.sigmoid or bool(task.absent_prompts)
    )
    scored = (
        "against the other classes" if task.kind == "multiclass" else "against its absence" if pairs else "by itself"
    )
    choices = {"texts": len(said), "scored": scored}
    absent = prompts.ensemble(tower, said.absent) if pairs else None
    return ZeroShot(prompts.ensemble(tower, said.present), absent, tower, task, choices)


def _tower(context: Context) -> Language:
    found = language.of(context.encoder)
    if isinstance(found, str):
        raise SettingsError(f"{context.encoder.source}: zero_shot: {found}")
    return found


def parts(fitted: ZeroShot) -> Parts:
    """Return what is kept of it: the features of the texts."""
    absent = {} if fitted.absent is None else {"absent": fitted.absent.numpy()}
    return Parts({"present": fitted.present.numpy(), **absent})


def restore(kept: Parts, context: Context) -> ZeroShot:
    """Return what `parts` took apart."""
    present, absent = (
        torch.from_numpy(np.array(kept.arrays[name])) if name in kept.arrays else None for name in ("present", "absent")
    )
    assert present is not None
    return ZeroShot(present, absent, _tower(context), context.task, kept.choices, kept.refitted)
