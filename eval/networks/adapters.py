"""Which parameters of a backbone are trained beside a probe's head: none, biases, low-rank updates, or all.

LoRA (arXiv 2106.09685) is a parametrisation of the weight itself: a layer multiplies by W + s·BA, so that
merging writes down the very matrix that was used. BitFit (arXiv 2106.10199) trains biases alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.utils import parametrize

Method = Literal["frozen", "bitfit", "lora", "full"]
# the matrices of attention as our models, timm's and Hugging Face's call them
ATTENTION = ("qkv", "proj", "query", "key", "value", "q_proj", "k_proj", "v_proj", "o_proj")


class LowRank(nn.Module):
    """W → W + alpha / rank · up · down, with up (rows, rank) zero at first and down (rank, columns) random."""

    def __init__(self, rows: int, columns: int, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = alpha / rank
        bound = 1 / math.sqrt(columns)
        self.down = nn.Parameter(torch.empty(rank, columns).uniform_(-bound, bound, generator=generator))
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.scale * (self.up @ self.down)


def prepare(
    model: nn.Module,
    method: Method,
    generator: torch.Generator,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    targets: Sequence[str] = ATTENTION,
) -> list[tuple[str, nn.Parameter]]:
    """Make `model` trainable by `method`; return the names and parameters that are trained.

    targets  last parts of the names of the linear layers that LoRA updates
    Raises ValueError for an unknown method or target.
    """
    if method not in get_args(Method):
        raise ValueError(f"{method!r}: no such way to adapt; there are {', '.join(get_args(Method))}")
    model.requires_grad_(method == "full")
    if method == "lora":
        layers = [(name, each) for name, each in model.named_modules() if name.rpartition(".")[2] in targets]
        layers = [(name, each) for name, each in layers if isinstance(each, nn.Linear)]
        if not layers:
            raise ValueError(f"LoRA: the model has no linear layer called {', '.join(targets)}")
        for _, layer in layers:
            rows, columns = layer.weight.shape
            low_rank = LowRank(rows, columns, rank, alpha, generator).to(layer.weight.device)
            parametrize.register_parametrization(layer, "weight", low_rank)
    if method == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def merge(model: nn.Module) -> nn.Module:
    """Write LoRA's updates into the weights, in place; the model has its own parameter names again."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model


def share(model: nn.Module) -> float:
    """Return the trained parameters as a share of all that the model has without LoRA's own."""
    own = [each for module in model.modules() if isinstance(module, LowRank) for each in module.parameters()]
    added = sum(each.numel() for each in own)
    everything = sum(each.numel() for each in model.parameters())
    return sum(each.numel() for each in model.parameters() if each.requires_grad) / (everything - added)
