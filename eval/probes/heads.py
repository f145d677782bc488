"""What small trained heads share: their loss over labels of which some are unknown, and their training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def entropy(logits: torch.Tensor, states: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Mean cross-entropy over what is known: logits (n, O), states (n, O) in {1, 0, −1}; exclusive: one softmax."""
    known, truth = (states >= 0).float(), (states == 1).float()
    if exclusive:
        mine = known.amin(dim=1)
        return -((logits.log_softmax(dim=1) * truth).sum(dim=1) * mine).sum() / mine.sum().clamp(min=1)
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def probabilities(logits: torch.Tensor, exclusive: bool) -> np.ndarray:
    """(n, O) of each label, or of classes of which one is true."""
    logits = logits.double()
    return (logits.softmax(dim=1) if exclusive else logits.sigmoid()).numpy()


def train(
    head: nn.Module,
    batch: Callable[[np.ndarray], Sequence[torch.Tensor]],
    states: np.ndarray,
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    exclusive: bool,
    seed: int,
) -> nn.Module:
    """Train a head by AdamW with a cosine schedule; `batch(units)` gives its arguments. In evaluation mode after it."""
    generator, count = np.random.default_rng(seed), len(states)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-count // batch_size))
    head.train()
    for _ in range(epochs):
        order = generator.permutation(count)
        for start in range(0, count, batch_size):
            units = np.sort(order[start : start + batch_size])
            value = entropy(head(*batch(units)), torch.from_numpy(states[units]), exclusive)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def logits(
    head: nn.Module, batch: Callable[[np.ndarray], Sequence[torch.Tensor]], count: int, batch_size: int
) -> torch.Tensor:
    """(count, O) logits."""
    with torch.inference_mode():
        return torch.cat(
            [head(*batch(np.arange(at, min(at + batch_size, count)))) for at in range(0, count, batch_size)]
        )
