"""Blocks through torch.compile: one graph for all blocks of a network and each set of shapes, none after warm-up."""

from __future__ import annotations

import torch

from pretrain.vit import VisionTransformer

_GRAPHS = 128  # student, teacher and Gram teacher, each with every pair of crop sizes of a mixture


def compile_blocks(model: VisionTransformer) -> None:
    """Compile every block in place; parameters keep their names. A break in a block's graph is an error."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    for block in model.blocks:
        block.compile(fullgraph=True, dynamic=False)
