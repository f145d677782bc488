"""What every process of `processes.py` would import, imported once before they are forked."""

import torch.distributed.checkpoint  # noqa: F401
import torch.distributed.device_mesh  # noqa: F401
import torch.distributed.fsdp  # noqa: F401

import pretrain.train  # noqa: F401
