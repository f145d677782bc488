"""Attentive pooling: learned queries attend to a slice's patches, and a linear head reads what they gathered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from eval.config import TaskConfig
from eval.contract import Choices, Context, Outcome, Parts, prediction_of, score
from eval.data.cohorts import Cohort
from eval.networks import state
from eval.networks.decoders import Standardise
from eval.probes import heads

_LAST = (-1,)  # the block whose patches are read
_SAMPLE = 256  # slices by whose patches features are standardised


class AttentiveHead(nn.Module):
    """(n, P, F) patches → (n, O) logits: patches are standardised; one query per head; values are the patches."""

    def __init__(self, standardise: Standardise, labels: int, count: int, seed: int) -> None:
        super().__init__()
        self.standardise = standardise
        width = len(standardise.mean)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.attention = nn.Linear(width, count, bias=False)  # query · key, folded into one row for each head
            self.classify = nn.Linear(width * count, labels)
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        tokens = self.standardise(patches)
        share = self.attention(tokens).softmax(dim=1)
        return self.classify(torch.einsum("nph,npf->nhf", share, tokens).flatten(1))


@dataclass(frozen=True)
class Attentive:
    """The head that validation patients chose."""

    head: AttentiveHead
    task: TaskConfig
    choices: Choices
    refitted: bool

    def predict(self, test: Cohort) -> list[Outcome]:
        return [Outcome(prediction_of(_probabilities(self.head, test, self.task), test, self.task))]


def fit(train: Cohort, val: Cohort, context: Context) -> Attentive:
    """Train a head per learning rate; with `refit` the chosen one again on training and validation patients."""
    task, config = context.task, context.task.attentive
    found = {lr: _train(train, task, lr) for lr in config.lr}
    scores = {lr: score(_probabilities(head, val, task), val, task) for lr, head in found.items()}
    lr = max(scores, key=scores.__getitem__)
    head = _train(train.plus(val), task, lr) if task.refit else found[lr]
    return Attentive(head, task, {"lr": lr}, task.refit)


def parts(fitted: Attentive) -> Parts:
    """Return what is kept of it: the head's weights."""
    return Parts(state.arrays(fitted.head, "head"))


def restore(kept: Parts, context: Context) -> Attentive:
    """Return what `parts` took apart."""
    standardise, labels = state.standardise(kept.arrays, "head.standardise"), len(kept.arrays["head.classify.bias"])
    head = AttentiveHead(standardise, labels, len(kept.arrays["head.attention.weight"]), context.task.seed)
    state.fill(head, kept.arrays, "head")
    return Attentive(head.eval(), context.task, kept.choices, kept.refitted)


def _train(cohort: Cohort, task: TaskConfig, lr: float) -> AttentiveHead:
    config = task.attentive
    rows = np.sort(np.random.default_rng(task.seed).permutation(len(cohort))[:_SAMPLE])
    standardise = Standardise.of(cohort.patches(rows, _LAST))
    head = AttentiveHead(standardise, cohort.states.shape[1], config.heads, task.seed)
    heads.train(
        head,
        _batch(cohort),
        cohort,
        lr=lr,
        epochs=config.epochs,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
    )
    return head


def _batch(cohort: Cohort) -> heads.Batch:
    return lambda units: (cohort.patches(units, _LAST),)


def _probabilities(head: AttentiveHead, cohort: Cohort, task: TaskConfig) -> np.ndarray:
    return heads.probabilities(head, _batch(cohort), cohort, task.attentive.batch_size)
