"""The loop that trains a probe's network: AdamW, warm-up, cosine, layer-wise decay; one for all of them."""

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
    """lr is the peak; `warmup` a share of all steps; `clip` a limit of the gradient's norm."""

    lr: float
    epochs: int
    batch_size: int
    weight_decay: float = 1e-2
    warmup: float = 0.1
    clip: float = 1.0


def run(
    groups: list[dict],
    loss_of: Callable[[np.ndarray, np.random.Generator], torch.Tensor],
    count: int,
    plan: Hyperparameters,
    seed: int,
) -> list[float]:
    """Train the parameters of `groups` (pretrain.optim.build_groups) in place; returns the losses.

    loss_of  rows of a batch, sorted, and a generator for its augmentation → loss. Rows are a function of the seed.
    Raises SettingsError where the loss is not finite.
    """
    generator = np.random.default_rng(seed)
    optimizer = optim.adamw(groups, (0.9, 0.999))
    parameters = [each for group in groups for each in group["params"]]
    steps = plan.epochs * -(-count // plan.batch_size)
    warmup = round(plan.warmup * steps)
    rates = warmup_cosine(start=0.0, peak=plan.lr, end=0.0, warmup_steps=warmup, total_steps=steps)
    losses: list[float] = []
    for _ in range(plan.epochs):
        order = generator.permutation(count)
        for start in range(0, count, plan.batch_size):
            loss = loss_of(np.sort(order[start : start + plan.batch_size]), generator)
            if not torch.isfinite(loss):
                raise SettingsError(f"the loss is {loss.item()} at step {len(losses)} (lr {plan.lr:g}); lower it")
            optim.set_step(optimizer, lr=rates[len(losses)], weight_decay=plan.weight_decay, freeze_last_layer=False)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, plan.clip, foreach=True)
            optimizer.step()
            losses.append(loss.item())
    return losses
