"""Linear heads by SGD: every learning rate × blocks × with or without the mean patch, all in one pass.

DINOv2's protocol (arXiv 2304.07193, appendix B.3): cls tokens of the last 1 or 4 blocks, with or without the mean
patch, cosine learning rates, and the head that serves the validation patients best. The heads share every batch, and
their inputs are stretches of one matrix: each stretch is multiplied once with the weights of all heads that read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, product

import numpy as np
import torch

from eval.config import LinearConfig, TaskConfig
from eval.contract import Choices, Context, Outcome, Parts, prediction_of, score
from eval.data.cohorts import Cohort
from eval.probes.logistic import Line, Standard


@dataclass(frozen=True)
class Input:
    """Which features a head reads: cls tokens of the last `blocks` blocks, with or without the mean patch."""

    blocks: int
    mean_patch: bool

    def columns(self, deepest: int, width: int) -> slice:
        """Return their columns of the widest input: `deepest` cls tokens and the mean patch, `width` channels each."""
        return slice((deepest - self.blocks) * width, (deepest + self.mean_patch) * width)


@dataclass(frozen=True)
class Head:
    """One head and what it was fitted with."""

    line: Line
    reads: Input
    lr: float


@dataclass(frozen=True)
class Best:
    """The head that validation patients chose."""

    head: Head
    task: TaskConfig
    choices: Choices
    refitted: bool

    def predict(self, test: Cohort) -> list[Outcome]:
        (found,) = probabilities([self.head], test, self.task)
        return [Outcome(prediction_of(found, test, self.task))]


def fit(train: Cohort, val: Cohort, context: Context) -> Best:
    """Fit all heads at once; with `refit` the chosen one again on training and validation patients."""
    task, config = context.task, context.task.linear
    heads = train_heads(train, inputs_of(train, config), config.lr, task)
    scores = [score(found, val, task) for found in probabilities(heads, val, task)]
    best = heads[int(np.argmax(scores))]
    choices = {"lr": best.lr, "blocks": best.reads.blocks, "mean_patch": best.reads.mean_patch}
    if task.refit:
        (best,) = train_heads(train.plus(val), [best.reads], [best.lr], task)
    return Best(best, task, choices, task.refit)


def parts(fitted: Best) -> Parts:
    """Return what is kept of it: the head's line and what the head reads."""
    head = fitted.head
    return Parts(head.line.arrays(), {"blocks": head.reads.blocks, "mean_patch": head.reads.mean_patch, "lr": head.lr})


def restore(kept: Parts, context: Context) -> Best:
    """Return what `parts` took apart."""
    reads = Input(kept.plain["blocks"], kept.plain["mean_patch"])
    head = Head(Line.kept(kept.arrays), reads, kept.plain["lr"])
    return Best(head, context.task, kept.choices, kept.refitted)


def probabilities(heads: Sequence[Head], cohort: Cohort, task: TaskConfig) -> Iterator[np.ndarray]:
    """Yield (U, O) for every head; neighbours that read the same share their inputs."""
    for reads, group in groupby(heads, lambda head: head.reads):
        same = list(group)
        inputs = same[0].line.standard.apply(cohort.pooled(reads.blocks, reads.mean_patch))
        yield from (head.line.of_standard(inputs, task.kind == "multiclass") for head in same)


def inputs_of(train: Cohort, config: LinearConfig) -> list[Input]:
    """Return every input once: a shallow network may lack blocks."""
    there = train.features.cls.shape[1]
    blocks = dict.fromkeys(min(each, there) for each in config.blocks)
    return [Input(*each) for each in product(blocks, config.mean_patch)]


def train_heads(train: Cohort, reads: list[Input], rates: list[float], task: TaskConfig) -> list[Head]:
    """Return a head for every input and learning rate, trained on the same batches."""
    deepest, width = max(each.blocks for each in reads), train.features.cls.shape[2]
    widest = train.pooled(deepest, True)
    standard = Standard.of(widest)
    columns = [each.columns(deepest, width) for each in reads]
    inputs, states = torch.from_numpy(standard.apply(widest)), torch.from_numpy(train.states)
    weights, biases = sgd(inputs, columns, states, rates, task.linear, task.kind == "multiclass", task.seed)
    labels, heads = states.shape[1], []
    for each, mine, weight, bias in zip(reads, columns, weights, biases):
        for number, lr in enumerate(rates):
            its = slice(number * labels, (number + 1) * labels)
            line = Line(Standard(standard.mean[mine], standard.std[mine]), weight[:, its].numpy(), bias[its].numpy())
            heads.append(Head(line, each, lr))
    return heads


@dataclass
class Stretch:
    """Columns of the inputs that the same heads read, and all these heads' weights on them.

    columns of the inputs; readers: numbers of the choices of columns that hold them; weights and push (momentum)
    (len(readers) · W · O, columns): rows are outputs, for which both matrix products are fastest.
    """

    columns: slice
    readers: list[int]
    weights: torch.Tensor
    push: torch.Tensor

    @classmethod
    def all(cls, columns: list[slice], wide: int) -> list[Stretch]:
        """Return the columns cut wherever a choice of them begins or ends."""
        cuts = sorted({each.start for each in columns} | {each.stop for each in columns})
        found = []
        for start, stop in pairwise(cuts):
            readers = [n for n, each in enumerate(columns) if each.start <= start and stop <= each.stop]
            if readers:
                shape = len(readers) * wide, stop - start
                found.append(cls(slice(start, stop), readers, torch.zeros(shape), torch.zeros(shape)))
        return found

    def of(self, reader: int, wide: int) -> torch.Tensor:
        """Return the (columns, wide) weights of one reader."""
        return self.weights.view(-1, wide, self.weights.shape[1])[self.readers.index(reader)].T


def sgd(
    inputs: torch.Tensor,
    columns: list[slice],
    states: torch.Tensor,
    rates: list[float],
    config: LinearConfig,
    exclusive: bool,
    seed: int,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return weights (D', W · O) and biases (W · O,) of W learning rates for every choice of columns of inputs (N, D).

    The gradient of a linear head is written out, `(probability − truth).T @ inputs`: one product for all heads that
    read a stretch of columns.
    """
    (count, labels), batch = states.shape, min(config.batch_size, len(states))
    known, truth = (states >= 0).float(), (states == 1).float()
    if exclusive:
        known = known.amin(dim=1, keepdim=True)
    wide, shape = len(rates) * labels, (len(columns), len(rates), labels, batch)
    scale = torch.tensor(rates).repeat_interleave(labels).repeat(len(columns))[:, None] * batch / 256
    generator = torch.Generator().manual_seed(seed)
    stretches = Stretch.all(columns, wide)
    biases, bias_push = torch.zeros(2, len(columns) * wide, 1)
    rows, at = torch.randperm(count, generator=generator), 0
    for step in range(config.steps):
        if at + batch > count:
            rows, at = torch.randperm(count, generator=generator), 0
        drawn, at = rows[at : at + batch], at + batch
        lr = scale * (0.5 * (1 + math.cos(math.pi * step / config.steps)))
        some, mask, target = inputs[drawn], known[drawn], truth[drawn].T
        # each label's mean over the units of the batch where it is known; one mean over units for classes
        share = (mask / mask.sum(dim=0).clamp(min=1)).T
        logits = biases.view(len(columns), wide, 1).repeat(1, 1, batch)
        for each in stretches:
            logits[each.readers] += (each.weights @ some[:, each.columns].T).view(-1, wide, batch)
        logits = logits.view(shape)
        found = logits.softmax(dim=2) if exclusive else logits.sigmoid_()
        gradient = found.sub_(target).mul_(share).view(len(columns), wide, batch)
        bias_push.mul_(config.momentum).add_(gradient.sum(dim=2).view(-1, 1))
        biases.addcmul_(bias_push, lr, value=-1)
        for each in stretches:
            mine = gradient[each.readers].view(-1, batch)
            each.push.addmm_(mine, some[:, each.columns], beta=config.momentum)
            each.weights.addcmul_(each.push, lr[: len(mine)], value=-1)
    found = [[each.of(n, wide) for each in stretches if n in each.readers] for n in range(len(columns))]
    return [torch.cat(each) for each in found], list(biases.view(len(columns), wide))
