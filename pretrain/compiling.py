"""Blocks through torch.compile: one graph for all blocks of a network and each set of shapes, none after warm-up."""

from __future__ import annotations

import torch

from pretrain.vit import VisionTransformer

ADVICE = (
    "a compilation that was killed may leave a broken file: remove the folder that TORCHINDUCTOR_CACHE_DIR names (else "
    "torchinductor_USER below the temporary folder) and start again, or set machine.compile=false"
)
_GRAPHS = 128  # student, teacher and Gram teacher, each with every pair of crop sizes of a mixture


def compile_blocks(model: VisionTransformer) -> None:
    """Compile every block in place; parameters keep their names. A break in a block's graph is an error.

    The forward function alone is compiled: what gathers and frees sharded parameters runs around it.
    """
    torch.fx.experimental._config.use_duck_shape = False  # numbers that happen to be equal once need not stay so
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    for block in model.blocks:
        # drop path lets other numbers of samples through in every step: once seen to change, they are any number
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=None if block.drop_path else False)


def failed(error: BaseException) -> bool:
    """Whether `error` is the compiler's."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
