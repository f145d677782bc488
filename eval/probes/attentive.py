"""Attentive pooling: learned queries attend to a slice's patches, and a linear head reads what they gathered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from eval.config import TaskConfig
from eval.contract import Context, Outcome, prediction_of, score
from eval.data.cohorts import Cohort
from eval.probes import heads

KINDS = ("binary", "multiclass", "multilabel", "segmentation")
NEEDS = "patches"
LEVELS = ("slice",)
_LAST = (-1,)  # the block whose patches are read
_SAMPLE = 256  # slices whose patches tell mean and spread


class AttentiveHead(nn.Module):
    """(n, P, F) patches → (n, O) logits: patches are standardised, then one query for each head, values as they are."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, labels: int, count: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        width = len(mean)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.attention = nn.Linear(width, count, bias=False)  # query · key, folded into one row for each head
            self.classify = nn.Linear(width * count, labels)
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        tokens = (patches - self.mean) / self.std
        share = self.attention(tokens).softmax(dim=1)
        return self.classify(torch.einsum("nph,npf->nhf", share, tokens).flatten(1))


@dataclass(frozen=True)
class Attentive:
    """The head that validation patients chose."""

    head: AttentiveHead
    task: TaskConfig
    choices: dict
    refitted: bool

    def predict(self, test: Cohort) -> list[Outcome]:
        return [Outcome(prediction_of(_probabilities(self.head, test, self.task), test, self.task))]


def fit(train: Cohort, val: Cohort, context: Context) -> Attentive:
    """A head for every learning rate; with `refit` the chosen one again on training and validation patients."""
    task, config = context.task, context.task.attentive
    found = {lr: _train(train, task, lr) for lr in config.lr}
    scores = {lr: score(_probabilities(head, val, task), val, task) for lr, head in found.items()}
    lr = max(scores, key=scores.get)
    head = _train(train.plus(val), task, lr) if task.refit else found[lr]
    return Attentive(head, task, {"lr": lr}, task.refit)


def _train(cohort: Cohort, task: TaskConfig, lr: float) -> AttentiveHead:
    config = task.attentive
    rows = np.sort(np.random.default_rng(task.seed).permutation(len(cohort))[:_SAMPLE])
    tokens = cohort.patches(rows, _LAST).flatten(0, 1)
    std = tokens.std(dim=0)
    std = torch.where(std > 1e-6, std, torch.ones_like(std))  # a constant channel says nothing
    head = AttentiveHead(tokens.mean(dim=0), std, cohort.states.shape[1], config.heads, task.seed)
    return heads.train(
        head,
        _batch(cohort),
        cohort.states,
        lr=lr,
        epochs=config.epochs,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        exclusive=task.kind == "multiclass",
        seed=task.seed,
    )


def _batch(cohort: Cohort):
    return lambda rows: (cohort.patches(rows, _LAST),)


def _probabilities(head: AttentiveHead, cohort: Cohort, task: TaskConfig) -> np.ndarray:
    found = heads.logits(head, _batch(cohort), len(cohort), task.attentive.batch_size)
    return heads.probabilities(found, task.kind == "multiclass")
