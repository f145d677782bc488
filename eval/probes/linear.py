"""Linear heads by SGD: every learning rate × blocks × with or without the mean patch, all in one pass.

DINOv2's protocol (arXiv 2304.07193, appendix B.3): cls tokens of the last 1 or 4 blocks, with or without the mean
patch, cosine learning rates, and the head that serves the validation patients best. The heads share every batch and
their inputs are stretches of one matrix, so that all of them are four matrix products: W heads of one input are one
head of W times the outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from eval.config import LinearConfig, TaskConfig
from eval.parts import Part
from eval.probes import Context, Outcome, chooser, merit, scored
from eval.probes.logistic import Line, Standard

KINDS = ("binary", "multiclass", "multilabel", "segmentation")
NEEDS = "pooled"


@dataclass(frozen=True)
class Input:
    """Which features a head reads: cls tokens of the last `blocks` blocks, with or without the mean patch."""

    blocks: int
    mean_patch: bool

    def columns(self, deepest: int, width: int) -> slice:
        """Where they lie in the widest input, `deepest` cls tokens and the mean patch of `width` channels each."""
        return slice((deepest - self.blocks) * width, (deepest + self.mean_patch) * width)


@dataclass(frozen=True)
class Head:
    """One head and what it was fitted with."""

    line: Line
    reads: Input
    lr: float

    def probabilities(self, part: Part, exclusive: bool) -> np.ndarray:
        """(U, O)."""
        return self.line.probabilities(part.pooled(self.reads.blocks, self.reads.mean_patch), exclusive)


@dataclass(frozen=True)
class Best:
    """The head that validation patients chose."""

    head: Head
    task: TaskConfig
    choices: dict
    refitted: bool

    def predict(self, test: Part) -> list[Outcome]:
        return [Outcome(scored(self.head.probabilities(test, self.task.kind == "multiclass"), test, self.task))]


def fit(train: Part, val: Part, context: Context) -> Best:
    """All heads at once; with `refit` the chosen one again on training and validation patients."""
    task, config = context.task, context.task.linear
    heads = train_heads(train, inputs_of(train, config), config.lr, task)
    exclusive = task.kind == "multiclass"
    merits = [merit(scored(head.probabilities(val, exclusive), val, task), chooser(task)) for head in heads]
    best = heads[int(np.argmax(merits))]
    choices = {"lr": best.lr, "blocks": best.reads.blocks, "mean_patch": best.reads.mean_patch}
    if task.refit:
        (best,) = train_heads(train.plus(val), [best.reads], [best.lr], task)
    return Best(best, task, choices, task.refit)


def inputs_of(train: Part, config: LinearConfig) -> list[Input]:
    """Every input, each once: a shallow network has no four blocks."""
    there = train.features.cls.shape[1]
    blocks = dict.fromkeys(min(each, there) for each in config.blocks)
    return [Input(*each) for each in product(blocks, config.mean_patch)]


def train_heads(train: Part, reads: list[Input], rates: list[float], task: TaskConfig) -> list[Head]:
    """A head for every input and learning rate, on the same batches."""
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
            line = Line(
                Standard(standard.mean[mine], standard.std[mine]), weight[:, its].numpy(), bias[its].numpy()
            )
            heads.append(Head(line, each, lr))
    return heads


def sgd(
    inputs: torch.Tensor,
    columns: list[slice],
    states: torch.Tensor,
    rates: list[float],
    config: LinearConfig,
    exclusive: bool,
    seed: int,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """For every stretch of columns of the inputs (N, D): weights (D', W · O) and biases (W · O,) of W learning rates.

    The gradient of a linear head is written out: `inputs.T @ (probability − truth)`, one product for all W heads.
    """
    (count, labels), batch = states.shape, min(config.batch_size, len(states))
    known, truth = (states >= 0).float(), (states == 1).float()
    if exclusive:
        known = known.amin(dim=1, keepdim=True)
    scale = torch.tensor(rates).repeat_interleave(labels) * batch / 256
    generator, wide = torch.Generator().manual_seed(seed), len(rates) * labels
    weights = [torch.zeros(inputs[:1, mine].shape[1], wide) for mine in columns]
    biases = [torch.zeros(wide) for _ in columns]
    moments = [(torch.zeros_like(weight), torch.zeros_like(bias)) for weight, bias in zip(weights, biases)]
    rows, at = torch.randperm(count, generator=generator), 0
    for step in range(config.steps):
        if at + batch > count:
            rows, at = torch.randperm(count, generator=generator), 0
        drawn, at = rows[at : at + batch], at + batch
        lr = scale * (0.5 * (1 + math.cos(math.pi * step / config.steps)))
        some, mask, target = inputs[drawn], known[drawn], truth[drawn][:, None]
        # each label's mean over the units of the batch where it is known; one mean over units for classes
        share = (mask / mask.sum(dim=0).clamp(min=1)).expand(-1, labels)[:, None]
        for mine, weight, bias, (push, bias_push) in zip(columns, weights, biases, moments):
            part = some[:, mine]
            logits = torch.addmm(bias, part, weight).view(batch, len(rates), labels)
            found = logits.softmax(dim=2) if exclusive else logits.sigmoid_()
            gradient = found.sub_(target).mul_(share).view(batch, wide)
            push.addmm_(part.T, gradient, beta=config.momentum)
            bias_push.mul_(config.momentum).add_(gradient.sum(dim=0))
            weight.addcmul_(push, lr, value=-1)
            bias.addcmul_(bias_push, lr, value=-1)
    return weights, biases
