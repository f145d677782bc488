"""Read and change the tokens between the blocks of a frozen encoder; gradients flow through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

Change = Callable[
    [int, torch.Tensor], torch.Tensor
]  # number of a block, (M, tokens, D) float32 behind it → what goes on


def run(
    forward: Callable[[], object], layers: Sequence[nn.Module], count: int, blocks: Sequence[int], change: Change
) -> None:
    """Call `forward`, a pass over `count` images; behind each of `blocks` (from 0), `change` says what goes on.

    layers  the encoder's blocks as modules, whose output is (count, tokens, D), the same as a row of tokens, or a tuple
            that begins with it
    """

    def hook_of(number: int) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: object, output: Any) -> Any:
            tokens = output[0] if isinstance(output, tuple) else output
            with torch.autocast(tokens.device.type, enabled=False):  # what is learned there is float32
                changed = change(number, tokens.reshape(count, -1, tokens.shape[-1]).float())
            changed = changed.reshape(tokens.shape).to(tokens.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    hooks = [layers[number].register_forward_hook(hook_of(number)) for number in blocks]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()


def layers_of(model: nn.Module, depth: int) -> list[nn.Module]:
    """Return the blocks of a network as modules: the first list of `depth` modules in it; [] where there is none."""
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) == depth:
            return list(module)
    return []
