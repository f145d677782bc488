"""Networks as arrays by name, and arrays put into networks again."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import nn

from eval.networks.decoders import Standardise


def arrays(module: nn.Module, prefix: str, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return parameters and buffers of a network as `<prefix>.<name>`; those in `names` alone, if given."""
    state = module.state_dict()
    return {f"{prefix}.{name}": state[name].cpu().numpy() for name in (state if names is None else names)}


def fill(module: nn.Module, stored: Mapping[str, np.ndarray], prefix: str, whole: bool = True) -> None:
    """Put the arrays `<prefix>.<name>` into a network.

    whole  whether they are all of its parameters and buffers. Raises RuntimeError for other names or shapes.
    """
    mine = {
        name.removeprefix(f"{prefix}."): torch.from_numpy(np.array(value))
        for name, value in stored.items()
        if name.startswith(f"{prefix}.")
    }
    module.load_state_dict(mine, strict=whole)


def standardise(stored: Mapping[str, np.ndarray], prefix: str = "standardise") -> Standardise:
    """Return the standardisation among the arrays of a network."""
    mean, std = (torch.from_numpy(np.array(stored[f"{prefix}.{name}"])) for name in ("mean", "std"))
    return Standardise(mean, std)
