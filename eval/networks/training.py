"""The loop that trains every head, decoder and network: AdamW, warm-up, cosine, layer-wise decay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from meddap.settings import SettingsError
from pretrain import optim
from pretrain.schedules import warmup_cosine


@dataclass(frozen=True)
class Hyperparameters:
    """How a network is trained.

    lr         the highest one
    warmup     share of all steps in which it rises linearly from 0; then it falls to 0 along half a cosine
    clip       limit of the gradient's norm
    reaches_0  whether the last step's rate is 0; False: that of the step after it would be
    """

    lr: float
    epochs: int
    batch_size: int
    weight_decay: float = 1e-2
    warmup: float = 0.1
    clip: float = 1.0
    reaches_0: bool = True


def run(
    groups: list[dict],
    loss_of: Callable[[np.ndarray, np.random.Generator], torch.Tensor],
    count: int,
    hyper: Hyperparameters,
    seed: int,
) -> list[float]:
    """Train the parameters of `groups` (pretrain.optim.build_groups) in place; return the losses.

    loss_of  rows of a batch, sorted, and a generator for its augmentation → loss. Rows are a function of the seed.
    count    of the rows
    Raises SettingsError where the loss is not finite.
    """
    generator = np.random.default_rng(seed)
    optimizer = optim.adamw(groups, (0.9, 0.999))
    parameters = [each for group in groups for each in group["params"]]
    steps = hyper.epochs * -(-count // hyper.batch_size)
    total, warmup = steps + (not hyper.reaches_0), round(hyper.warmup * steps)
    rates = warmup_cosine(start=0.0, peak=hyper.lr, end=0.0, warmup_steps=warmup, total_steps=total)
    losses: list[float] = []
    for _ in range(hyper.epochs):
        order = generator.permutation(count)
        for start in range(0, count, hyper.batch_size):
            loss = loss_of(np.sort(order[start : start + hyper.batch_size]), generator)
            if not torch.isfinite(loss):
                raise SettingsError(f"the loss is {loss.item()} at step {len(losses)} (lr {hyper.lr:g}); lower it")
            rate = float(rates[len(losses)])
            optim.set_step(optimizer, lr=rate, weight_decay=hyper.weight_decay, freeze_last_layer=False)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, hyper.clip, foreach=True)
            optimizer.step()
            losses.append(loss.item())
    return losses
