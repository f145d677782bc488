"""How networks are spread over processes: whole on each (`ddp`), in shards (`fsdp`), or one process alone.

DDP averages whole gradients while the backward pass runs. FSDP2 keeps a shard of every parameter, of its optimizer
state and of its teacher on each rank, gathers a block's parameters before it runs and averages its gradients into
shards.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from meddap.settings import SettingsError
from pretrain.model.student_teacher import Model
from pretrain.model.vit import VisionTransformer
from pretrain.runtime.distributed import World

KINDS = ("none", "ddp", "fsdp")


def kind(wish: str, world: World) -> str:
    """Return how a run of this size is spread. One process has nothing to spread. Raises SettingsError."""
    if wish not in KINDS:
        raise SettingsError(f"machine.parallel: {wish!r}; use {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if wish == "none" and world.size > 1:
        raise SettingsError(f"machine.parallel=none, but {world.size} processes were started; use ddp or fsdp")
    return wish if world.size > 1 else "none"


class Spread:
    """Networks spread over the processes of `world`.

    bf16        blocks are gathered in bfloat16, which they are multiplied in; gradients are averaged in float32
    reshard     let a block's gathered parameters go after the forward pass: less memory, one more gathering
    """

    def __init__(self, how: str, world: World, device: torch.device, *, bf16: bool, reshard: bool) -> None:
        self.how, self.device, self.reshard, self.bf16 = how, device, reshard, bf16
        self._mesh = None
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh

            self._mesh = init_device_mesh(device.type, (world.size,))

    @property
    def sharded(self) -> bool:
        return self.how == "fsdp"

    def student(self, model: Model) -> nn.Module:
        """Return what to call instead of `model` so that gradients are averaged. Its parameters are `model`'s."""
        if self.how == "ddp":
            here = [self.device.index] if self.device.type == "cuda" else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PyTorch 2.13 has another name for it, 2.10 has not
                # buffers follow from the architecture: nothing to broadcast
                return DistributedDataParallel(model, here, broadcast_buffers=False, gradient_as_bucket_view=True)
        self._shard(model, self.reshard)
        return model

    def frozen(self, model: nn.Module) -> None:
        """Shard a network without gradients. Its parameters change between steps, so none stays gathered."""
        self._shard(model, True)

    def _shard(self, model: nn.Module, reshard: bool) -> None:
        if not self.sharded:
            return
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        narrow = MixedPrecisionPolicy(torch.bfloat16 if self.bf16 else None, torch.float32, cast_forward_inputs=False)
        backbones = [part for part in model.modules() if isinstance(part, VisionTransformer)]
        for backbone in backbones:
            for block in backbone.blocks:
                fully_shard(block, mesh=self._mesh, reshard_after_forward=reshard, mp_policy=narrow)
        # embeddings, norms and heads stay float32: bf16 in a head would round away what tells directions apart
        heads = [] if model in backbones else [part for part in model.children() if part not in backbones]
        for part in backbones + heads:
            fully_shard(part, mesh=self._mesh, reshard_after_forward=reshard)
        # features are views of one row of tokens; nobody writes into them
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for backbone in backbones:
            register_fsdp_forward_method(backbone, "packed")
