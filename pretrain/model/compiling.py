"""Blocks through torch.compile: one graph for all blocks of a network and each set of shapes, none after warm-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pretrain.model.vit import VisionTransformer

ADVICE = (
    "a compilation that was killed may leave a broken file: remove the folder that TORCHINDUCTOR_CACHE_DIR names (else "
    "torchinductor_USER below the temporary folder) and start again, or set machine.compile=false"
)
_GRAPHS = 128  # student, teacher and Gram teacher, each with every pair of crop sizes of a mixture


def compile_blocks(model: VisionTransformer, *, replayed: bool = False) -> None:
    """Compile every block in place; parameters keep their names. A break in a block's graph is an error.

    The forward function alone is compiled: the code that gathers and frees sharded parameters runs around it.

    replayed  on a GPU, each graph's kernels are recorded once and started together (CUDA graphs), except the last
              block's: for a network without gradients whose crops have one size
    """
    torch.fx.experimental._config.use_duck_shape = False  # numbers that happen to be equal once need not stay so
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    for block in model.blocks:
        # drop path lets another number of samples through in every step, and another number of masked patches is read
        # behind the last block: once a size is seen to change, it may be any number
        varies = block.drop_path or block is model.blocks[-1]
        dynamic = None if varies else False
        mode = "reduce-overhead" if replayed and not varies else None
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=dynamic, mode=mode)
    if replayed:
        model.blocks[0].forward = _beginning(model.blocks[0].forward)


def _beginning(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Wrap the first block's forward function to say that earlier outputs of the graphs may be overwritten.

    Nothing holds those: features are what the final norm made of them.
    """

    def begun(*arguments: Any) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return forward(*arguments)

    return begun


def failed(error: BaseException) -> bool:
    """Return whether `error` is the compiler's."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
