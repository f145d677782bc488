"""Networks from scratch as probes: what the labels alone would have bought (eval.networks.baselines)."""

from __future__ import annotations

import numpy as np
import torch

from eval.config import NetworkConfig
from eval.contract import Context
from eval.data.cohorts import Cohort
from eval.networks import baselines, fitting
from eval.networks.fitting import Network
from eval.networks.targets import Outputs
from meddap.settings import SettingsError
from pretrain import optim
from pretrain.runtime.device import pick_device

_SAMPLE = 256  # images by which the input is standardised


def fit(train: Cohort, val: Cohort, context: Context, kind: str, config: NetworkConfig):
    """`unet` and `transunet` draw, `cnn` gives labels. The encoder lends its window of HU and nothing else."""
    task, draws = context.task, kind != "cnn"
    if draws and task.size % 16:
        raise SettingsError(f"size={task.size}: {kind} needs a multiple of 16")

    def make(cohort: Cohort) -> Network:
        device = pick_device("auto")
        stored = cohort.images
        sample = np.sort(np.random.default_rng(task.seed).permutation(len(stored))[:_SAMPLE])
        seen = torch.from_numpy(stored[sample]).float()
        mean, std = (value.view(1, -1, 1, 1).to(device) for value in (seen.mean((0, 2, 3)), seen.std((0, 2, 3))))
        outputs = len(cohort.names) if draws else Outputs.of(cohort).count
        network = baselines.build(
            kind, stored.shape[1], outputs, config.channels, torch.Generator().manual_seed(task.seed)
        ).to(device)
        named = ((name, each) for name, each in network.named_parameters())
        groups = optim.build_groups(named, 0, 1.0, 1.0)
        return Network(network, lambda images: (images - mean) / (std + 1e-6), groups, device)

    parameters = sum(each.numel() for each in make(train).network.parameters())
    return fitting.fit(make, train, val, context, config, draws, parameters=parameters)
