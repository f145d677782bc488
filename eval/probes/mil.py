"""Volumes from their slices: the mean, the maximum, or gated attention over them (Ilse et al., arXiv 1802.04712)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import nn

from eval.config import Pooling, TaskConfig
from eval.contract import Choices, Context, Outcome, Parts, prediction_of, score
from eval.data.cohorts import Cohort
from eval.networks import state
from eval.probes import heads, logistic
from eval.probes.logistic import Line, Standard

_STRENGTHS = 15  # of the logistic regression on the mean and on the maximum
_BATCH = 16  # volumes


class GatedAttention(nn.Module):
    """(n, Z, D) slices and (n, Z) which are there → (n, O) logits."""

    def __init__(self, width: int, labels: int, hidden: int, dropout: float, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.value, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
            self.attend = nn.Linear(hidden, 1)
        self.drop = nn.Dropout(dropout)
        self.classify = nn.Linear(width, labels)
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)

    def forward(self, slices: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        gated = torch.tanh(self.value(slices)) * torch.sigmoid(self.gate(slices))
        share = self.attend(gated).squeeze(2).masked_fill(~there, -torch.inf).softmax(dim=1)
        return self.classify(self.drop(torch.einsum("nz,nzd->nd", share, slices)))


@dataclass(frozen=True)
class FittedMil:
    """Lines on the mean and the maximum, and the attention that validation patients chose."""

    lines: dict[Pooling, Line]
    attention: GatedAttention
    standard: Standard
    task: TaskConfig
    choices: Choices
    refitted: bool

    def predict(self, test: Cohort) -> list[Outcome]:
        exclusive = self.task.kind == "multiclass"
        found: dict[str, np.ndarray] = {
            how: line.probabilities(test.pooled(how=how), exclusive) for how, line in self.lines.items()
        }
        found["attention"] = _probabilities(self.attention, self.standard, test)
        return [Outcome(prediction_of(each, test, self.task), {"pool": how}) for how, each in found.items()]


def fit(train: Cohort, val: Cohort, context: Context) -> FittedMil:
    """Fit two lines and the attention: validation patients choose the penalty of each line and the learning rate of
    the attention; with `refit` all three are fitted again on training and validation patients."""
    task, config = context.task, context.task.mil
    lines: dict[Pooling, Line] = {}
    choices: Choices = {}
    for how in get_args(Pooling):
        choices[how], lines[how] = logistic.choose(train, val, task, _STRENGTHS, how, task.refit)
    standard = Standard.of(train.slices())
    tried = {lr: _train(train, standard, task, lr) for lr in config.lr}
    scores = {lr: score(_probabilities(head, standard, val), val, task) for lr, head in tried.items()}
    choices["attention"] = lr = max(scores, key=scores.__getitem__)
    head = tried[lr]
    if task.refit:
        both = train.plus(val)
        standard = Standard.of(both.slices())
        head = _train(both, standard, task, lr)
    return FittedMil(lines, head, standard, task, choices, task.refit)


def parts(fitted: FittedMil) -> Parts:
    """Return what is kept of it: both lines, the attention's weights and the standardisation before it."""
    arrays = {**state.arrays(fitted.attention, "attention"), **fitted.standard.arrays()}
    for how, line in fitted.lines.items():
        arrays |= line.arrays(how)
    return Parts(arrays)


def restore(kept: Parts, context: Context) -> FittedMil:
    """Return what `parts` took apart."""
    config, arrays = context.task.mil, kept.arrays
    lines = {how: Line.kept(arrays, how) for how in get_args(Pooling)}
    labels, width = arrays["attention.classify.weight"].shape
    attention = GatedAttention(width, labels, config.hidden, config.dropout, context.task.seed)
    state.fill(attention, arrays, "attention")
    return FittedMil(lines, attention.eval(), Standard.kept(arrays), context.task, kept.choices, kept.refitted)


def _train(cohort: Cohort, standard: Standard, task: TaskConfig, lr: float) -> GatedAttention:
    config = task.mil
    # a seed of its own for dropout: the run is the same whatever was drawn before
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        head = GatedAttention(len(standard.mean), cohort.states.shape[1], config.hidden, config.dropout, task.seed)
        heads.train(
            head,
            _batch(cohort, standard),
            cohort,
            lr=lr,
            epochs=config.epochs,
            batch_size=_BATCH,
            weight_decay=config.weight_decay,
        )
    return head


def _batch(cohort: Cohort, standard: Standard) -> heads.Batch:
    """Return what gives volumes of different lengths, padded (n, Z, D), and which slices are there (n, Z)."""
    slices = torch.from_numpy(standard.apply(cohort.slices()))
    ends = np.cumsum(np.bincount(cohort.unit, minlength=len(cohort)))
    members = np.split(np.argsort(cohort.unit, kind="stable"), ends[:-1])

    def batch(units: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        mine = [slices[members[unit]] for unit in units]
        padded = nn.utils.rnn.pad_sequence(mine, batch_first=True)
        lengths = torch.tensor([len(each) for each in mine])
        return padded, torch.arange(padded.shape[1])[None] < lengths[:, None]

    return batch


def _probabilities(head: GatedAttention, standard: Standard, cohort: Cohort) -> np.ndarray:
    return heads.probabilities(head, _batch(cohort, standard), cohort, _BATCH)
